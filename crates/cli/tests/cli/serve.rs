//! A daemon's start, its end, and what happens in between at the administrator's wish.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::{PROGRAM, errors, last_json, pageferry, pattern, scratch};

#[test]
fn a_daemon_that_is_told_to_stop_brings_everything_home() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(&[]);
        let file = daemon.file("file", 64 << 10);
        let mut client = daemon.client(&file);
        client.does("pin -w 0 64k");
        client.does("dwrite -S 7 0 4k");
        // Where nothing can be kept away it goes home at once, and the command says so.
        client.ask("unpin -k");
        let mode = daemon.socket.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        daemon.signal(signal);
        let status = daemon.ended();
        assert!(status.success(), "{status}: {}", daemon.log());
        assert!(!daemon.socket.exists(), "its socket is left");
        assert_eq!(client.fails("pread 0 1"), "disconnected");
        let mut model = pattern(64 << 10);
        model[..4096].fill(7);
        assert!(std::fs::read(&file).unwrap() == model);
    }
}

#[test]
fn what_cannot_be_written_back_is_told_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, file) = (dir.path().join("socket"), dir.path().join("file"));
    std::fs::write(&file, pattern(256 << 10)).unwrap();
    let mut command = Command::new("sh");
    // No byte behind the first 128 KiB of a file can be written.
    let line = "trap '' XFSZ; ulimit -f 256; exec $P serve --socket $S --device-memory 4m --frame 64k \
        --flush-age 0";
    command.args(["-c", line]).env("P", PROGRAM).env("S", &socket).stdin(Stdio::null());
    let mut daemon = Daemon::spawn(dir, socket, &mut command);
    let mut client = daemon.client(&file);
    client.does("pin -w 192k 64k");
    client.does("dwrite -S 7 192k 4k");
    assert_eq!(client.fails("unpin"), "file-too-big");
    drop(client);
    daemon.expect_log("session closed", 1);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().code(), Some(1));
    daemon.expect_log("not everything could be written back", 1);
}

#[test]
fn limits_are_read_again_and_no_client_notices() {
    let limits = tempfile::NamedTempFile::new().unwrap();
    let set = |text: &str| std::fs::write(limits.path(), text).unwrap();
    set("pins = 1");
    let mut daemon = Daemon::start(&["--limits", limits.path().to_str().unwrap()]);
    let file = daemon.file("file", 64 << 10);
    let mut client = daemon.client(&file);
    client.does("pin 0 4k");
    assert_eq!(client.fails("pin 0 4k"), "limit");
    set("pins = 2\npinned_bytes = \"8k\"");
    daemon.signal(Signal::HUP);
    daemon.expect_log("limits are read again", 1);
    client.does("pin 0 4k");
    assert_eq!(client.fails("pin 0 4k"), "limit");
    set("pins = 3\npinz = 3");
    daemon.signal(Signal::HUP);
    daemon.expect_log("pinz", 1);
    assert_eq!(client.fails("pin 0 4k"), "limit");
    client.does("unpin");
    client.does("pin 0 4k");
    client.does("unpin");
    assert_eq!(client.fails("pin 0 8k"), "limit");
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().success());
}

#[test]
fn sessions_are_logged_also_for_programs() {
    let daemon = Daemon::start(&["--log-json"]);
    let file = daemon.file("file", 100);
    let client = daemon.client(&file);
    let pid = client.pid();
    daemon.expect_log("session opened", 1);
    client.kill();
    daemon.expect_log("session closed", 1);
    for line in daemon.log().lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect(line);
        assert_eq!((&event["level"], &event["pid"]), (&"INFO".into(), &pid.into()), "{line}");
        assert_eq!((&event["session"], &event["program"]), (&1.into(), &"pageferry".into()));
    }
}

#[test]
fn a_client_that_limits_keep_out_hears_why() {
    let limits = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(limits.path(), "sessions = 0").unwrap();
    let daemon = Daemon::start(&["--limits", limits.path().to_str().unwrap()]);
    let file = daemon.file("file", 100);
    let output = daemon.run(&["io", "CONNECT", "FILE", "--json", "-c", "stats"], &file);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(last_json(&output)["error"]["kind"], "limit");
    daemon.expect_log("a client is turned away", 1);
}

#[test]
fn systemd_hands_over_a_socket_and_is_told_how_the_daemon_does() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("handed");
    let notify = dir.path().join("notify");
    let systemd = UnixDatagram::bind(&notify).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let heard = || {
        let mut told = [0; 200];
        let len = systemd.recv(&mut told).unwrap();
        String::from_utf8(told[..len].to_vec()).unwrap()
    };
    // The shell makes the socket descriptor 3, and names itself, which the daemon then is.
    let line = "exec 3<&0 </dev/null; export LISTEN_PID=$$; \
        exec $P serve --device-memory 4m --frame 64k";
    let mut command = Command::new("sh");
    command.args(["-c", line]).env("P", PROGRAM).env("LISTEN_FDS", "1");
    command.env("NOTIFY_SOCKET", &notify).stdin(listening(&socket));
    let mut daemon = Daemon::spawn(dir, socket, &mut command);
    assert_eq!(heard(), "READY=1");
    let file = daemon.file("file", 100);
    daemon.client(&file).does("pin 0 100");
    daemon.signal(Signal::HUP);
    let reloading = heard();
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
    assert!(time.parse::<u64>().unwrap() > 0);
    assert_eq!(heard(), "READY=1");
    daemon.signal(Signal::TERM);
    assert_eq!(heard(), "STOPPING=1");
    assert!(daemon.ended().success());
    assert!(daemon.socket.exists(), "it was systemd's");
}

#[test]
fn the_unit_starts_the_daemon_as_its_options_allow() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contrib/systemd");
    let service = std::fs::read_to_string(units.join("pageferry.service")).unwrap();
    let start = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    // An option that is not there is told before the help is.
    let args: Vec<&str> = start.split_whitespace().skip(1).chain(["--help"]).collect();
    let output = pageferry(&args, Path::new(""));
    assert!(output.status.success(), "{}", errors(&output));
    let socket = std::fs::read_to_string(units.join("pageferry.socket")).unwrap();
    assert!(socket.contains("\nListenSequentialPacket="), "{socket}");
}

/// A socket as `ListenSequentialPacket=` makes one.
fn listening(path: &Path) -> OwnedFd {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let fd = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&fd, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&fd, 10).unwrap();
    fd
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let daemon = Daemon::start(&["--socket-mode", "0666"]);
    let mode = daemon.socket.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    let limits = daemon.file("limits", 0);
    std::fs::write(&limits, "sessions = 3\nnonsense = 1").unwrap();
    let elsewhere = limits.with_file_name("elsewhere");
    let (here, elsewhere) = (daemon.at(), elsewhere.to_str().unwrap());
    let at = |socket| vec!["serve", "--device-memory", "1m", "--frame", "64k", "--socket", socket];
    for (args, status, part) in [
        (at(here), 1, "in use"),
        (at("FILE"), 1, "no socket"),
        (vec!["serve", "--device-memory", "1m"], 1, "--socket"),
        (vec!["serve", "--device-memory", "1k", "--socket", elsewhere], 1, "no frame"),
        ([at(elsewhere), vec!["--limits", "FILE"]].concat(), 1, "line 2: unknown field `nonsense`"),
        ([at(elsewhere), vec!["--limits", "/nonexistent"]].concat(), 1, "No such file"),
        ([at(elsewhere), vec!["--metrics", "FILE"]].concat(), 1, "no socket"),
        ([at(elsewhere), vec!["--socket-mode", "0888"]].concat(), 2, "octal"),
        ([at(elsewhere), vec!["--frame", "3k"]].concat(), 2, "cannot be used multiple times"),
        (vec!["serve", "--socket", elsewhere], 2, "--device-memory"),
    ] {
        let output = pageferry(&args, &limits);
        assert!(errors(&output).contains(part), "{args:?}: {}", errors(&output));
        assert_eq!(output.status.code(), Some(status), "{args:?}");
    }
    assert!(!Path::new(elsewhere).exists(), "a socket is left");
    let output = crate::finished(
        Command::new(PROGRAM).args(at(elsewhere)).env("PAGEFERRY_LOG", "everything"),
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("PAGEFERRY_LOG is 'everything'"), "{}", errors(&output));
}

#[test]
fn options_of_a_cache_of_ones_own_are_not_for_a_daemons() {
    let s = scratch(100);
    let nobody = s.file.with_file_name("nobody");
    let nobody = nobody.to_str().unwrap();
    for option in [
        &["--device-memory", "1m"][..],
        &["--frame", "64k"],
        &["--flush-age", "1"],
        &["--guard", "none"],
        &["--trust-stamps"],
    ] {
        let args = [&["io", "--connect", nobody, "FILE", "-c", "stats"], option].concat();
        let output = pageferry(&args, &s.file);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(errors(&output).contains("cannot be used with"), "{}", errors(&output));
    }
    for args in [
        &["io", "--connect", nobody, "FILE", "--json", "-c", "stats"][..],
        &["run", "sum", "--connect", nobody, "FILE", "--json"],
        &["stat", "--connect", nobody, "FILE", "--json"],
        &["where", "--connect", nobody, "FILE", "0", "1", "--json"],
        &["load", "--connect", nobody, "FILE", "--json"],
        &["drop", "--connect", nobody, "FILE", "--json"],
        &["top", "--connect", nobody, "--json"],
    ] {
        let output = pageferry(args, &s.file);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(last_json(&output)["error"]["kind"], "not-found", "{args:?}");
        assert!(errors(&output).contains(nobody), "{}", errors(&output));
    }
}

#[test]
fn failures_cannot_be_armed_on_a_daemons_device() {
    let daemon = Daemon::start(&[]);
    let file = daemon.file("file", 100);
    assert_eq!(daemon.client(&file).fails("fail copy-out"), "unsupported");
}
