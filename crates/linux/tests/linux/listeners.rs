//! Where clients connect: whose socket it is, who may, and when it goes.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use pageferry_linux::{ListenError, Listener, Received, Socket, notify_systemd};

use crate::{Watchdog, child};

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).expect("metadata").permissions().mode() & 0o7777
}

fn accept(listener: &Listener) -> Socket {
    listener.accept().expect("accept").expect("not stopped")
}

#[test]
fn clients_connect_and_are_known() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("socket");
    let listener = Listener::bind(&path, 0o600).expect("bind");
    let client = Socket::connect(&path).expect("connect");
    let server = accept(&listener);
    assert_eq!(server.peer().expect("peer").pid, std::process::id());
    client.send(b"hello", &[]).expect("send");
    let mut buf = [0; 10];
    assert_eq!(server.recv(&mut buf, &mut Vec::new(), 0).expect("recv"), Received::Packet(5));
    for fd in [listener.as_fd(), server.as_fd(), client.as_fd()] {
        let flags = rustix::io::fcntl_getfd(fd).expect("flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
    // A whole session outlives the listener, and its file goes with it.
    drop(listener);
    assert!(!path.exists());
    server.send(b"bye", &[]).expect("send");
    assert_eq!(client.recv(&mut buf, &mut Vec::new(), 0).expect("recv"), Received::Packet(3));
}

/// The umask takes away from what `bind` gives; the mode stands all the same. And what the head of the module says
/// of `fchmod` is so.
#[test]
fn the_mode_is_as_told_and_never_wider() {
    let dir = tempfile::tempdir().expect("directory");
    for wanted in [0o600, 0o666, 0o660, 0o777, 0o000] {
        let path = dir.path().join(format!("{wanted:o}"));
        let _listener = Listener::bind(&path, wanted).expect("bind");
        assert_eq!(mode(&path), wanted);
    }
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let path = dir.path().join("plain");
    let fd = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("socket");
    rustix::fs::fchmod(&fd, rustix::fs::Mode::RUSR).expect("fchmod");
    rustix::net::bind(&fd, &SocketAddrUnix::new(&path).expect("address")).expect("bind");
    assert_eq!(mode(&path), 0o400);
    let refused = Socket::connect(&path).expect_err("nobody listens yet");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_dead_socket_is_replaced_and_nothing_else() {
    // A child that another test forks has the sockets for a moment after they are closed here.
    if let Some(output) = child::again("listeners::a_dead_socket_is_replaced_and_nothing_else") {
        return child::passed(&output);
    }
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("socket");
    let in_use = |path: &Path| match Listener::bind(path, 0o600) {
        Err(ListenError::InUse(at)) => assert_eq!(at, path),
        other => panic!("{other:?}"),
    };
    let live = Listener::bind(&path, 0o600).expect("bind");
    in_use(&path);
    Socket::connect(&path).expect("still there");
    drop(live);
    // Of another type; and dead once it is closed, because nobody removes it.
    let stream = UnixListener::bind(&path).expect("bind");
    in_use(&path);
    drop(stream);
    assert!(std::fs::symlink_metadata(&path).expect("there").file_type().is_socket());
    drop(Listener::bind(&path, 0o600).expect("replaces it"));
    std::fs::write(&path, "kept").expect("write");
    assert!(matches!(Listener::bind(&path, 0o600), Err(ListenError::NotASocket(at)) if at == path));
    assert_eq!(std::fs::read_to_string(&path).expect("read"), "kept");
    let (link, dead) = (dir.path().join("link"), dir.path().join("dead"));
    drop(UnixListener::bind(&dead).expect("bind"));
    symlink(&dead, &link).expect("link");
    assert!(matches!(Listener::bind(&link, 0o600), Err(ListenError::NotASocket(_))));
    assert!(matches!(
        Listener::bind(dir.path().join("none/socket"), 0o600),
        Err(ListenError::Os { source, .. }) if source.kind() == std::io::ErrorKind::NotFound
    ));
    assert!(matches!(
        Listener::bind(dir.path().join("n".repeat(200)), 0o600),
        Err(ListenError::Os { source, .. }) if source.raw_os_error() == Some(libc::ENAMETOOLONG)
    ));
}

/// A server that ends late does not take its successor's socket away.
#[test]
fn only_its_own_file_is_removed() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("socket");
    let old = Listener::bind(&path, 0o600).expect("bind");
    std::fs::rename(&path, dir.path().join("elsewhere")).expect("rename");
    let new = Listener::bind(&path, 0o600).expect("bind");
    let inode = std::fs::symlink_metadata(&path).expect("there").ino();
    drop(old);
    assert_eq!(std::fs::symlink_metadata(&path).expect("there").ino(), inode);
    Socket::connect(&path).expect("connect");
    drop(new);
    assert!(!path.exists());
}

/// Of many that start at once on a dead socket, one listens, and is reached.
#[test]
fn two_servers_do_not_take_over_from_each_other() {
    // A child that another test forks has the sockets for a moment after they are closed here.
    if let Some(output) = child::again("listeners::two_servers_do_not_take_over_from_each_other") {
        return child::passed(&output);
    }
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("socket");
    for _ in 0..50 {
        drop(UnixListener::bind(&path).expect("bind"));
        let bind = || Listener::bind(&path, 0o600);
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(bind)).collect();
            threads.into_iter().map(|t| t.join().expect("thread")).collect()
        });
        let (bound, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert!(refused.iter().all(|r| matches!(r, Err(ListenError::InUse(_)))), "{refused:?}");
        assert_eq!(bound.len(), 1);
        Socket::connect(&path).expect("connect");
        drop(bound);
        assert!(!path.exists());
    }
}

#[test]
fn accepting_is_stopped_from_another_thread() {
    let _watchdog = Watchdog::watch("a listener that is stopped");
    let dir = tempfile::tempdir().expect("directory");
    let listener = Listener::bind(dir.path().join("socket"), 0o600).expect("bind");
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(|| listener.accept())).collect();
        listener.stop();
        for thread in threads {
            assert!(thread.join().expect("thread").expect("accept").is_none());
        }
    });
    assert!(listener.accept().expect("accept").is_none(), "for good");
}

/// Runs a test as a service of systemd's: with a descriptor 3 and variables that name its process.
fn as_service(name: &str, third: impl Into<Stdio>, count: u32) {
    const SCRIPT: &str =
        r#"exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS="$COUNT"; exec "$0" "$@""#;
    let output = Command::new("sh")
        .args(["-c", SCRIPT])
        .arg(std::env::current_exe().expect("own path"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env("COUNT", count.to_string())
        .env(SERVICE, "yes")
        .stdin(third)
        .output()
        .expect("sh");
    child::passed(&output);
}

const SERVICE: &str = "PAGEFERRY_TEST_SERVICE";

#[test]
fn the_socket_of_systemd_is_taken() {
    if std::env::var_os(SERVICE).is_some() {
        for _ in 0..2 {
            let listener = Listener::from_systemd().expect("usable").expect("there");
            let server = accept(&listener);
            server.send(b"served", &[]).expect("send");
        }
        return;
    }
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("socket");
    let listener = Listener::bind(&path, 0o600).expect("bind");
    let clients = [(); 2].map(|()| Socket::connect(&path).expect("connect"));
    let handed = listener.as_fd().try_clone_to_owned().expect("duplicate");
    as_service("listeners::the_socket_of_systemd_is_taken", handed, 1);
    for client in clients {
        let received = client.recv(&mut [0; 10], &mut Vec::new(), 0).expect("recv");
        assert_eq!(received, Received::Packet(6));
    }
    // The service has left it as it was, for the next one.
    Socket::connect(&path).expect("connect");
    accept(&listener);
}

#[test]
fn other_descriptors_of_systemd_are_refused() {
    if std::env::var_os(SERVICE).is_some() {
        let refused = Listener::from_systemd().expect_err("not usable");
        assert!(matches!(refused, ListenError::Handed(_)), "{refused}");
        return;
    }
    const NAME: &str = "listeners::other_descriptors_of_systemd_are_refused";
    let dir = tempfile::tempdir().expect("directory");
    let bound = UnixListener::bind(dir.path().join("stream")).expect("bind");
    as_service(NAME, std::os::fd::OwnedFd::from(bound), 1);
    as_service(NAME, std::os::fd::OwnedFd::from(UnixStream::pair().expect("pair").0), 1);
    as_service(NAME, Socket::pair().expect("pair").0.as_fd().try_clone_to_owned().expect("fd"), 1);
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    as_service(NAME, std::os::fd::OwnedFd::from(tcp), 1);
    as_service(NAME, std::fs::File::open("/dev/null").expect("open"), 1);
    as_service(NAME, std::fs::File::open("/dev/null").expect("open"), 2);
}

#[test]
fn without_systemd_there_is_no_socket_and_nobody_to_tell() {
    if std::env::var_os("LISTEN_PID").is_some() || std::env::var_os("NOTIFY_SOCKET").is_some() {
        return println!("skipped: this runs under systemd");
    }
    assert!(Listener::from_systemd().expect("nothing wrong").is_none());
    assert!(!notify_systemd("READY=1").expect("nothing wrong"));
}
