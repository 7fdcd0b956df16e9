//! Found by a hostile review of the guards: each fails, and says what it would take.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::*;
use crate::mount::Mount;
use crate::strangers::{PAGES, filled, guarded, keep, prove};
use crate::ways::Page;
use pageferry::Guard;

const ALL: std::ops::Range<u64> = 0..PAGES * PAGE;
const LEN: u64 = PAGES * PAGE;

fn open_rw(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn sync_file(path: &Path, number: u64) {
    std::fs::write(path, filled(PAGES, number)).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
}

fn truncate(path: &Path, to: u64) {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a string.
    let rc = unsafe { libc::truncate(path.as_ptr(), to as i64) };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
}

#[test]
#[ignore = "BUG: a loop device that comes and goes between two looks by a thread that opened the file"]
fn loop_between_two_looks() {
    let rig = guarded(Guard::Fanotify);
    sync_file(&rig.path("a"), 1);
    let f = rig.cache.open(rig.path("a")).unwrap();
    prove(&f);
    let s = open_rw(&rig.path("a"));
    device_reads(&f, ALL);
    let control = open_rw(Path::new("/dev/loop-control"));
    // SAFETY: numbers only.
    let n = unsafe { libc::ioctl(control.as_raw_fd(), 0x4C82) };
    let dev = format!("/dev/loop{n}");
    let l = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&dev).unwrap();
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::ioctl(l.as_raw_fd(), 0x4C00, s.as_raw_fd()) }, 0);
    #[repr(align(4096))]
    struct A([u8; 4096]);
    let a = A(Page::of(7).0);
    l.write_all_at(&a.0, 3 * PAGE).unwrap();
    l.sync_all().unwrap();
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::ioctl(l.as_raw_fd(), 0x4C01, 0) }, 0);
    drop(l);
    for _ in 0..2000 {
        if std::fs::read(format!("/sys/block/loop{n}/loop/backing_file")).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let got = device_reads(&f, 3 * PAGE..4 * PAGE);
    let mut b = [0; 4096];
    s.read_exact_at(&mut b, 3 * PAGE).unwrap();
    assert_eq!(b[..], Page::of(7).0[..]);
    same(&got, &b, "after the loop device");
}

#[test]
#[ignore = "BUG: a loop device whose backing_file name leads to another file now"]
fn loop_by_a_hidden_name() {
    let rig = guarded(Guard::Fanotify);
    sync_file(&rig.path("a"), 1);
    let f = rig.cache.open(rig.path("a")).unwrap();
    prove(&f);
    std::fs::hard_link(rig.path("a"), rig.path("b")).unwrap();
    let s = open_rw(&rig.path("b"));
    let control = open_rw(Path::new("/dev/loop-control"));
    // SAFETY: numbers only.
    let n = unsafe { libc::ioctl(control.as_raw_fd(), 0x4C82) };
    let dev = format!("/dev/loop{n}");
    let l = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&dev).unwrap();
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::ioctl(l.as_raw_fd(), 0x4C00, s.as_raw_fd()) }, 0);
    std::fs::remove_file(rig.path("b")).unwrap();
    std::fs::write(rig.path("b (deleted)"), "x").unwrap();
    device_reads(&f, ALL);
    #[repr(align(4096))]
    struct A([u8; 4096]);
    let a = A(Page::of(7).0);
    l.write_all_at(&a.0, 3 * PAGE).unwrap();
    l.sync_all().unwrap();
    let got = device_reads(&f, 3 * PAGE..4 * PAGE);
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::ioctl(l.as_raw_fd(), 0x4C01, 0) }, 0);
    drop(l);
    same(&got, &Page::of(7).0, "under the loop device");
}

fn listener(guard: Guard) {
    let rig = guarded(guard);
    sync_file(&rig.path("a"), 1);
    let f = rig.cache.open(rig.path("a")).unwrap();
    // SAFETY: numbers only.
    let group = unsafe { libc::fanotify_init(libc::FAN_CLASS_NOTIF, libc::O_RDWR as u32) };
    assert!(group >= 0);
    let path = std::ffi::CString::new(rig.path("a").as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a string.
    let rc = unsafe {
        libc::fanotify_mark(group, libc::FAN_MARK_ADD, libc::FAN_OPEN, -1, path.as_ptr())
    };
    assert_eq!(rc, 0);
    drop(File::open(rig.path("a")).unwrap());
    prove(&f);
    let mut event = [0_u8; 24];
    // SAFETY: the group is ours.
    let mut group = unsafe { File::from_raw_fd(group) };
    assert_eq!(group.read(&mut event).unwrap(), 24);
    let fd = i32::from_ne_bytes(*event[16..].first_chunk().unwrap());
    assert!(fd >= 0);
    // SAFETY: the event's own.
    let event = unsafe { File::from_raw_fd(fd) };
    event.write_all_at(&Page::of(7).0, 3 * PAGE).unwrap();
    drop(event);
    same(
        &device_reads(&f, 3 * PAGE..4 * PAGE),
        &Page::of(7).0,
        "by a descriptor of another fanotify group",
    );
}

#[test]
#[ignore = "BUG: descriptors of others' fanotify events leave no events (needs a root stranger)"]
fn listener_none() {
    listener(Guard::None);
}

#[test]
#[ignore = "BUG: descriptors of others' fanotify events leave no events (needs a root stranger)"]
fn listener_fanotify() {
    listener(Guard::Fanotify);
}

#[test]
#[ignore = "BUG: an event descriptor of another group reads old bytes while the new ones are away"]
fn listener_reads_away() {
    let rig = guarded(Guard::Fanotify);
    sync_file(&rig.path("a"), 1);
    let f = rig.cache.open(rig.path("a")).unwrap();
    // SAFETY: numbers only.
    let group = unsafe { libc::fanotify_init(libc::FAN_CLASS_NOTIF, libc::O_RDWR as u32) };
    let path = std::ffi::CString::new(rig.path("a").as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a string.
    let rc = unsafe {
        libc::fanotify_mark(group, libc::FAN_MARK_ADD, libc::FAN_OPEN, -1, path.as_ptr())
    };
    assert_eq!(rc, 0);
    drop(File::open(rig.path("a")).unwrap());
    keep(&f, PAGES, 2).unwrap();
    let mut event = [0_u8; 24];
    // SAFETY: the group is ours.
    let mut group = unsafe { File::from_raw_fd(group) };
    assert_eq!(group.read(&mut event).unwrap(), 24);
    let fd = i32::from_ne_bytes(*event[16..].first_chunk().unwrap());
    // SAFETY: the event's own.
    let event = unsafe { File::from_raw_fd(fd) };
    let mut b = [0; 4096];
    event.read_exact_at(&mut b, 0).unwrap();
    same(&b, &Page::of(2).0, "read through a NONOTIFY descriptor");
}

#[test]
#[ignore = "BUG: EXT4_IOC_SWAP_BOOT leaves no event; CLOSE_WRITE by a told thread is believed"]
fn ext4_swap_boot() {
    let rig = guarded(Guard::Fanotify);
    let fs = Mount::image_at("ext4", 64 << 20, &rig.path("img")).unwrap();
    let (a, g) = (fs.path().join("a"), fs.path().join("g"));
    sync_file(&a, 1);
    sync_file(&g, 9);
    let gf = open_rw(&g);
    // SAFETY: no argument.
    assert_eq!(unsafe { libc::ioctl(gf.as_raw_fd(), 0x6611) }, 0);
    let f = rig.cache.open(&a).unwrap();
    prove(&f);
    let s = open_rw(&a);
    device_reads(&f, ALL);
    // SAFETY: no argument.
    let rc = unsafe { libc::ioctl(s.as_raw_fd(), 0x6611) };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    let got = device_reads(&f, ALL);
    let disk = std::fs::read(&a).unwrap();
    drop(s);
    let later = device_reads(&f, ALL);
    f.close().unwrap();
    same(&disk, &filled(PAGES, 9), "disk");
    same(&got, &disk, "while open");
    same(&later, &disk, "after close");
}

/// A pid namespace whose /proc is its parent's.
#[test]
#[ignore = "control: passes, as the open is taken for a change; see the report for what breaks it"]
fn foreign_proc() {
    let out = Command::new("unshare")
        .args(["--pid", "--fork"])
        .arg(std::env::current_exe().unwrap())
        .args(["review::foreign_proc_inner", "--exact", "--include-ignored", "--nocapture"])
        .env("REVIEW_INNER", "1")
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
#[ignore = "the inner half of foreign_proc"]
fn foreign_proc_inner() {
    if std::env::var_os("REVIEW_INNER").is_none() {
        return;
    }
    let rig = guarded(Guard::Fanotify);
    sync_file(&rig.path("a"), 1);
    let f = rig.cache.open(rig.path("a")).unwrap();
    prove(&f);
    let s = open_rw(&rig.path("a"));
    let map = mapped(&s, (3 * PAGE) as u64, true);
    device_reads(&f, ALL);
    map.store(0, 77);
    assert_eq!(
        device_reads(&f, 3 * PAGE..4 * PAGE)[0],
        77,
        "a store through a mapping that was told as a read"
    );
}

fn overlay_truncate(guard: Guard, away: bool) {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path.display().to_string()
    };
    let (lower, upper, work) = (make("lower"), make("upper"), make("work"));
    let a = Path::new(&upper).join("a");
    sync_file(&a, 1);
    let overlay =
        Mount::overlay(&format!("lowerdir={lower},upperdir={upper},workdir={work}")).unwrap();
    let merged = overlay.path().join("a");
    let rig = guarded(guard);
    let f = rig.cache.open(&a).unwrap();
    if away {
        keep(&f, PAGES, 2).unwrap();
    } else {
        prove(&f);
    }
    truncate(&merged, 0);
    truncate(&merged, LEN);
    let got = device_reads(&f, ALL);
    f.flush(ALL).unwrap();
    f.close().unwrap();
    let disk = std::fs::read(&a).unwrap();
    println!("device[0]={} disk[0]={}", got[0], disk[0]);
    same(&got, &vec![0; LEN as usize], "device");
    same(&disk, &vec![0; LEN as usize], "disk");
}

#[test]
#[ignore = "BUG: truncate by name through an overlay asks nobody: what was cut comes back"]
fn overlay_truncate_lease() {
    overlay_truncate(Guard::Lease, true);
}

#[test]
#[ignore = "BUG: truncate by name through an overlay asks nobody: what was cut comes back"]
fn overlay_truncate_fanotify() {
    overlay_truncate(Guard::Fanotify, true);
}

#[test]
#[ignore = "control: without anything away"]
fn overlay_truncate_copies() {
    overlay_truncate(Guard::Fanotify, false);
}

#[test]
#[ignore = "BUG: a truncation by name that was told, and waits before it counts as a writer, is forgotten"]
fn truncate_told_then_frozen() {
    within(60, || {
        let rig = guarded(Guard::Fanotify);
        let fs = Mount::image_at("ext4", 64 << 20, &rig.path("img")).unwrap();
        let a = fs.path().join("a");
        sync_file(&a, 1);
        let f = rig.cache.open(&a).unwrap();
        keep(&f, PAGES, 2).unwrap();
        f.flush(ALL).unwrap();
        let root = File::open(fs.path()).unwrap();
        // SAFETY: FIFREEZE takes nothing.
        assert_eq!(unsafe { libc::ioctl(root.as_raw_fd(), 0xC004_5877_u64, 0) }, 0);
        let by = a.clone();
        let t = std::thread::spawn(move || {
            truncate(&by, 0);
            truncate(&by, LEN);
        });
        std::thread::sleep(Duration::from_millis(500));
        let kept = keep(&f, PAGES, 9);
        // SAFETY: FITHAW takes nothing.
        assert_eq!(unsafe { libc::ioctl(root.as_raw_fd(), 0xC004_5878_u64, 0) }, 0);
        t.join().unwrap();
        println!("kept: {kept:?}");
        let got = device_reads(&f, ALL);
        f.flush(ALL).unwrap();
        f.close().unwrap();
        let disk = std::fs::read(&a).unwrap();
        drop(root);
        println!("device[0]={} disk[0]={}", got[0], disk[0]);
        same(&got, &vec![0; LEN as usize], "device");
        same(&disk, &vec![0; LEN as usize], "disk");
    });
}

#[test]
#[ignore = "BUG: registered buffers outlive the mapping (tmpfs); documented only for mapped ranges"]
fn registered_buffers_outlive_a_mapping() {
    let fs = Mount::tmpfs(1 << 20).unwrap();
    let a = fs.path().join("a");
    std::fs::write(&a, filled(PAGES, 1)).unwrap();
    let rig = guarded(Guard::None);
    let f = rig.cache.open(&a).unwrap();
    let mut ring = io_uring::IoUring::new(4).unwrap();
    let s = open_rw(&a);
    // SAFETY: a new mapping.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            s.as_raw_fd(),
            0,
        )
    };
    let iov = libc::iovec { iov_base: at, iov_len: 4096 };
    // SAFETY: mapped.
    unsafe { ring.submitter().register_buffers(&[iov]) }.unwrap();
    // SAFETY: ours.
    unsafe { libc::munmap(at, 4096) };
    drop(s);
    prove(&f);
    let (out, mut into) = std::io::pipe().unwrap();
    into.write_all(&Page::of(7).0).unwrap();
    let read =
        io_uring::opcode::ReadFixed::new(io_uring::types::Fd(out.as_raw_fd()), at.cast(), 4096, 0)
            .build();
    // SAFETY: the buffer is registered.
    unsafe { ring.submission().push(&read) }.unwrap();
    ring.submit_and_wait(1).unwrap();
    assert_eq!(ring.completion().next().unwrap().result(), 4096);
    let got = device_reads(&f, 0..PAGE);
    let disk = std::fs::read(&a).unwrap();
    same(&disk[..4096], &Page::of(7).0, "the file");
    same(&got, &Page::of(7).0, "the device");
}

/// The write is issued by task work while the thread is in a `read` of a pipe.
#[test]
#[ignore = "BUG: io_uring's task work runs in whatever call the thread is in; a failed write owes for ever"]
fn task_work_in_a_read() {
    task_work(true);
}

/// As above, but the pages are cached: the write is punted to a worker.
#[test]
#[ignore = "BUG: a worker of io_uring says the call that its maker was in, not -1"]
fn task_work_in_a_read_punted() {
    task_work(false);
}

fn task_work(inline: bool) {
    within(30, move || {
        let rig = guarded(Guard::Fanotify);
        sync_file(&rig.path("a"), 1);
        let f = rig.cache.open(rig.path("a")).unwrap();
        prove(&f);
        let s = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(rig.path("a"))
            .unwrap();
        let (gate_out, mut gate_in) = std::io::pipe().unwrap();
        let (mut stop_out, mut stop_in) = std::io::pipe().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let t = std::thread::spawn(move || {
            // SAFETY: the kernel is given a bad pointer on purpose.
            let rc = unsafe { libc::pwrite(s.as_raw_fd(), 0x1000 as *const _, 4096, 7 * 4096) };
            assert_eq!(rc, -1);
            #[repr(align(4096))]
            struct A([u8; 4096]);
            let a = Box::new(A(Page::of(7).0));
            let mut ring = io_uring::IoUring::new(4).unwrap();
            let poll = io_uring::opcode::PollAdd::new(
                io_uring::types::Fd(gate_out.as_raw_fd()),
                libc::POLLIN as u32,
            )
            .build()
            .flags(io_uring::squeue::Flags::IO_LINK);
            let write = io_uring::opcode::Write::new(
                io_uring::types::Fd(s.as_raw_fd()),
                a.0.as_ptr(),
                4096,
            )
            .offset(3 * PAGE)
            .build();
            let write = if inline { write } else { write.flags(io_uring::squeue::Flags::ASYNC) };
            // SAFETY: all outlives the calls.
            unsafe { ring.submission().push_multiple(&[poll, write]) }.unwrap();
            ring.submit().unwrap();
            // SAFETY: a number.
            tell.send(unsafe { libc::gettid() }).unwrap();
            let mut b = [0];
            stop_out.read_exact(&mut b).unwrap();
            let results: Vec<i32> = ring.completion().map(|c| c.result()).collect();
            drop(gate_out);
            (s, results, a)
        });
        let tid = told.recv().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        println!("in: {}", std::fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap());
        let look = open_rw(&rig.path("a"));
        device_reads(&f, ALL);
        if inline {
            // SAFETY: numbers only.
            unsafe { libc::posix_fadvise(look.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
        gate_in.write_all(&[1]).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        for task in std::fs::read_dir("/proc/self/task").unwrap() {
            let task = task.unwrap().path();
            let name = std::fs::read_to_string(task.join("comm")).unwrap();
            if name.contains("iou") || !inline {
                println!("{name} {:?}", std::fs::read_to_string(task.join("syscall")));
            }
        }
        let mut b = [0; 4096];
        look.read_exact_at(&mut b, 3 * PAGE).unwrap();
        let got = device_reads(&f, 3 * PAGE..4 * PAGE);
        let again = device_reads(&f, 3 * PAGE..4 * PAGE);
        stop_in.write_all(&[1]).unwrap();
        let (s, results, _) = t.join().unwrap();
        println!("{results:?}");
        drop((s, look));
        same(&b, &Page::of(7).0, "the file");
        same(&got, &b, "the device");
        same(&again, &b, "the device, again");
    });
}

/// A process with a cache: `REVIEW_SERVER` names the file. Orders on its input.
#[test]
#[ignore = "the server of others"]
fn server() {
    let Some(path) = std::env::var_os("REVIEW_SERVER") else { return };
    let rig = guarded(Guard::Fanotify);
    let f = rig.cache.open(Path::new(&path)).unwrap();
    prove(&f);
    println!("\nREVIEW ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        match line.as_str() {
            "fork and die" => {
                // SAFETY: the child only sleeps.
                let child = unsafe { libc::fork() };
                if child == 0 {
                    // SAFETY: sleeps and ends.
                    unsafe {
                        libc::sleep(30);
                        libc::_exit(0);
                    }
                }
                println!("\nREVIEW {child}");
                std::io::stdout().flush().unwrap();
                // SAFETY: ends this process.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            }
            "no descriptors" => {
                let next = File::open("/dev/null").unwrap().as_raw_fd() as u64;
                let limit = libc::rlimit { rlim_cur: next, rlim_max: next };
                // SAFETY: valid.
                assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
                println!("\nREVIEW ok");
            }
            "read" => println!("\nREVIEW {}", device_reads(&f, 3 * PAGE..4 * PAGE)[0]),
            _ => panic!("{line}"),
        }
    }
}

struct Server(std::process::Child, BufReader<std::process::ChildStdout>);

impl Server {
    fn start(path: &Path) -> Server {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["review::server", "--exact", "--include-ignored", "--nocapture"])
            .env("REVIEW_SERVER", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut server = Server(child, out);
        server.answer();
        server
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.1.read_line(&mut line).unwrap(), 0, "it has ended");
            if let Some(rest) = line.strip_prefix("REVIEW ") {
                return rest.trim().to_owned();
            }
        }
    }

    fn ask(&mut self, order: &str) -> String {
        writeln!(self.0.stdin.as_mut().unwrap(), "{order}").unwrap();
        self.answer()
    }

    fn signal(&self, signal: i32) {
        // SAFETY: our own child.
        unsafe { libc::kill(self.0.id() as i32, signal) };
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "BUG: a forked child keeps the gate's group: if its parent is killed, all who touch the file hang"]
fn a_killed_parent_with_a_child() {
    let dir = tempfile::tempdir().unwrap();
    let a = dir.path().join("a");
    sync_file(&a, 1);
    let mut server = Server::start(&a);
    let child: i32 = server.ask("fork and die").parse().unwrap();
    let _ = server.0.wait();
    let (tell, told) = std::sync::mpsc::channel();
    let by = a.clone();
    std::thread::spawn(move || tell.send(std::fs::read(by).map(|b| b.len())));
    let answer = told.recv_timeout(Duration::from_secs(8));
    // SAFETY: the child that the server made.
    unsafe { libc::kill(child, libc::SIGKILL) };
    let after = told.recv_timeout(Duration::from_secs(5));
    println!("after the child is gone: {after:?}");
    assert!(answer.is_ok(), "reading hangs");
}

#[test]
#[ignore = "BUG: a process out of descriptors has others' accesses refused (EPERM)"]
fn no_descriptors_left() {
    let dir = tempfile::tempdir().unwrap();
    let a = dir.path().join("a");
    sync_file(&a, 1);
    let s = open_rw(&a);
    drop(s);
    let mut server = Server::start(&a);
    server.ask("no descriptors");
    let read = std::fs::read(&a);
    assert!(read.is_ok(), "{read:?}");
}

#[test]
#[ignore = "BUG: accesses beyond the queue's end go ahead unasked (changes a sysctl for a moment)"]
fn more_wait_than_the_queue_holds() {
    const KNOB: &str = "/proc/sys/fs/fanotify/max_queued_events";
    let dir = tempfile::tempdir().unwrap();
    let a = dir.path().join("a");
    sync_file(&a, 1);
    let was = std::fs::read_to_string(KNOB).unwrap();
    std::fs::write(KNOB, "4").unwrap();
    let mut server = Server::start(&a);
    std::fs::write(KNOB, was.trim()).unwrap();
    server.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_millis(100));
    let openers: Vec<_> = (0..4)
        .map(|_| {
            let by = a.clone();
            std::thread::spawn(move || File::open(by).unwrap())
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let s = open_rw(&a);
    let map = mapped(&s, 3 * PAGE, true);
    server.signal(libc::SIGCONT);
    let held: Vec<_> = openers.into_iter().map(|o| o.join().unwrap()).collect();
    server.ask("read");
    server.ask("read");
    map.store(0, 77);
    let got = server.ask("read");
    drop(held);
    assert_eq!(got, "77");
}

/// A FUSE file that is passed through to `a`: who maps it maps `a`.
#[test]
#[ignore = "BUG: mappings through FUSE's passthrough are told to nobody, and come through our own mount"]
fn fuse_passthrough_mapping() {
    let rig = guarded(Guard::Fanotify);
    sync_file(&rig.path("a"), 1);
    let f = rig.cache.open(rig.path("a")).unwrap();
    prove(&f);
    let mnt = rig.path("mnt");
    std::fs::create_dir(&mnt).unwrap();
    let mut device = open_rw(Path::new("/dev/fuse"));
    let how = std::ffi::CString::new(format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        device.as_raw_fd()
    ))
    .unwrap();
    let at = std::ffi::CString::new(mnt.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: strings.
    assert_eq!(
        unsafe {
            libc::mount(c"fuse".as_ptr(), at.as_ptr(), c"fuse".as_ptr(), 0, how.as_ptr().cast())
        },
        0
    );
    let backing = open_rw(&rig.path("a"));
    std::thread::spawn(move || {
        let mut buf = vec![0; 1 << 20];
        let attr = |node: u64| {
            let mode = if node == 1 { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
            let long = [node, LEN, LEN / 512, 0, 0, 0].map(u64::to_ne_bytes);
            let short = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes);
            [long.concat(), short.concat()].concat()
        };
        while let Ok(len) = device.read(&mut buf) {
            let r = &buf[..len];
            let op = u32::from_ne_bytes(*r[4..].first_chunk().unwrap());
            let node = u64::from_ne_bytes(*r[16..].first_chunk().unwrap());
            let body: Result<Vec<u8>, i32> = match op {
                1 if &r[40..] == b"p\0" => {
                    Ok([2_u64.to_ne_bytes().to_vec(), vec![0; 32], attr(2)].concat())
                }
                1 => Err(libc::ENOENT),
                2 | 36 | 42 => continue,
                3 | 4 => Ok([vec![0; 16], attr(node)].concat()),
                14 => {
                    let mut map = [backing.as_raw_fd() as u64, 0];
                    // SAFETY: a `fuse_backing_map`.
                    let id = unsafe {
                        libc::ioctl(device.as_raw_fd(), 0x4010_E501_u64, map.as_mut_ptr())
                    };
                    println!("backing id {id} {}", std::io::Error::last_os_error());
                    Ok([0, 0, 1 << 7, id as u32].map(u32::to_ne_bytes).concat())
                }
                18 | 20 | 25 | 38 => Ok(vec![]),
                26 => {
                    let mut out = [7, 40, 65536, 1 << 30, 0, 65536, 1, 0, 1 << 5, 1]
                        .map(u32::to_ne_bytes)
                        .concat();
                    out.resize(64, 0);
                    Ok(out)
                }
                _ => Err(libc::ENOSYS),
            };
            let (error, body) = body.map_or_else(|e| (-e, vec![]), |b| (0, b));
            let mut reply = (16 + body.len() as u32).to_ne_bytes().to_vec();
            reply.extend(error.to_ne_bytes());
            reply.extend(&r[8..16]);
            reply.extend(body);
            let _ = device.write(&reply);
        }
    });
    let p = open_rw(&mnt.join("p"));
    let map = mapped(&p, 3 * PAGE, true);
    device_reads(&f, ALL);
    map.store(0, 77);
    let got = device_reads(&f, 3 * PAGE..4 * PAGE)[0];
    let disk = rig.on_disk("a")[3 * 4096];
    drop((map, p));
    // SAFETY: a string.
    unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    assert_eq!(disk, 77, "the file");
    assert_eq!(got, 77, "the device");
}

/// A kernel thread submits; the submitter's own failed write owes.
#[test]
#[ignore = "control: SQPOLL"]
fn sqpoll() {
    let rig = guarded(Guard::Fanotify);
    sync_file(&rig.path("a"), 1);
    let f = rig.cache.open(rig.path("a")).unwrap();
    prove(&f);
    let s = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(rig.path("a"))
        .unwrap();
    #[repr(align(4096))]
    struct A([u8; 4096]);
    let a = Box::new(A(Page::of(7).0));
    let mut ring: io_uring::IoUring =
        io_uring::IoUring::builder().setup_sqpoll(1000).build(4).unwrap();
    for page in [3, 5] {
        device_reads(&f, ALL);
        // SAFETY: numbers only.
        unsafe { libc::posix_fadvise(s.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        let bad = io_uring::opcode::Write::new(
            io_uring::types::Fd(s.as_raw_fd()),
            0x1000 as *const u8,
            4096,
        )
        .offset(7 * PAGE)
        .build();
        let write =
            io_uring::opcode::Write::new(io_uring::types::Fd(s.as_raw_fd()), a.0.as_ptr(), 4096)
                .offset(page * PAGE)
                .build();
        // SAFETY: all outlives the calls.
        unsafe { ring.submission().push_multiple(&[bad, write]) }.unwrap();
        ring.submit_and_wait(2).unwrap();
        println!("{:?}", ring.completion().map(|c| c.result()).collect::<Vec<_>>());
        same(&device_reads(&f, page * PAGE..(page + 1) * PAGE), &Page::of(7).0, "SQPOLL");
    }
}

/// A loop device on a file of a FUSE server that also reads the gated file: a look asks the server for a
/// name with the guards' lock held, the server waits for the gate, the gate for the lock.
#[test]
#[ignore = "BUG: deadlock: names of loop devices' files are looked up under the guards' lock"]
fn loop_names_and_a_fuse_server() {
    let rig = guarded(Guard::Fanotify);
    sync_file(&rig.path("a"), 1);
    let f = rig.cache.open(rig.path("a")).unwrap();
    prove(&f);
    let mnt = rig.path("mnt");
    std::fs::create_dir(&mnt).unwrap();
    let mut device = open_rw(Path::new("/dev/fuse"));
    let how = std::ffi::CString::new(format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        device.as_raw_fd()
    ))
    .unwrap();
    let at = std::ffi::CString::new(mnt.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: strings.
    assert_eq!(
        unsafe {
            libc::mount(c"fuse".as_ptr(), at.as_ptr(), c"fuse".as_ptr(), 0, how.as_ptr().cast())
        },
        0
    );
    let gated = open_rw(&rig.path("a"));
    let reads = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = std::sync::Arc::clone(&reads);
    std::thread::spawn(move || {
        let mut buf = vec![0; 1 << 20];
        let attr = |node: u64| {
            let mode = if node == 1 { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
            let long = [node, LEN, LEN / 512, 0, 0, 0].map(u64::to_ne_bytes);
            let short = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes);
            [long.concat(), short.concat()].concat()
        };
        while let Ok(len) = device.read(&mut buf) {
            let r = &buf[..len];
            let op = u32::from_ne_bytes(*r[4..].first_chunk().unwrap());
            let node = u64::from_ne_bytes(*r[16..].first_chunk().unwrap());
            let body: Result<Vec<u8>, i32> = match op {
                1 if &r[40..] == b"p\0" => {
                    if flag.load(std::sync::atomic::Ordering::SeqCst) {
                        let _ = gated.read_at(&mut [0; 4096], 0);
                    }
                    Ok([2_u64.to_ne_bytes().to_vec(), vec![0; 32], attr(2)].concat())
                }
                1 => Err(libc::ENOENT),
                2 | 36 | 42 => continue,
                3 | 4 => Ok([vec![0; 16], attr(node)].concat()),
                14 => Ok([0, 0, 0, 0].map(u32::to_ne_bytes).concat()),
                15 => Ok(vec![0; u32::from_ne_bytes(*r[56..].first_chunk().unwrap()) as usize]),
                18 | 20 | 25 | 38 => Ok(vec![]),
                26 => {
                    let mut out = [7, 31, 65536, 0, 0, 65536, 1].map(u32::to_ne_bytes).concat();
                    out.resize(64, 0);
                    Ok(out)
                }
                _ => Err(libc::ENOSYS),
            };
            let (error, body) = body.map_or_else(|e| (-e, vec![]), |b| (0, b));
            let mut reply = (16 + body.len() as u32).to_ne_bytes().to_vec();
            reply.extend(error.to_ne_bytes());
            reply.extend(&r[8..16]);
            reply.extend(body);
            let _ = device.write(&reply);
        }
    });
    let p = File::open(mnt.join("p")).unwrap();
    let control = open_rw(Path::new("/dev/loop-control"));
    // SAFETY: numbers only.
    let n = unsafe { libc::ioctl(control.as_raw_fd(), 0x4C82) };
    let l = File::open(format!("/dev/loop{n}")).unwrap();
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::ioctl(l.as_raw_fd(), 0x4C00, p.as_raw_fd()) }, 0);
    device_reads(&f, ALL);
    reads.store(true, std::sync::atomic::Ordering::SeqCst);
    let (tell, told) = std::sync::mpsc::channel();
    let by = f.clone();
    std::thread::spawn(move || {
        device_reads(&by, ALL);
        let _ = tell.send(());
    });
    let answer = told.recv_timeout(Duration::from_secs(8));
    // The way out: the connection is aborted. SAFETY: a string.
    unsafe { libc::umount2(at.as_ptr(), libc::MNT_FORCE) };
    let _ = told.recv_timeout(Duration::from_secs(5));
    // SAFETY: numbers only.
    unsafe { libc::ioctl(l.as_raw_fd(), 0x4C01, 0) };
    drop((l, p));
    // SAFETY: a string.
    unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    assert!(answer.is_ok(), "a pin hangs");
}
