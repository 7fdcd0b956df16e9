//! Who answers for a descriptor's file, found without asking it.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use pageferry_linux::{Served, Socket, file_system_served};
use rustix::fs::{Mode, OFlags};

use crate::Watchdog;

#[test]
fn files_of_this_kernel_are_known_and_what_is_not_mounted_is_not() {
    let served = |fd: std::os::fd::BorrowedFd<'_>| file_system_served(fd).expect("/proc");
    let file = tempfile::tempfile_in("/dev/shm").expect("file");
    assert_eq!(served(file.as_fd()), Served::ByKernel);
    let place = rustix::fs::open("/dev/shm", OFlags::PATH, Mode::empty()).expect("open");
    assert_eq!(served(place.as_fd()), Served::ByKernel);
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let memory = rustix::fs::memfd_create("test", flags).expect("memfd");
    assert_eq!(served(memory.as_fd()), Served::Unknown);
    assert_eq!(served(std::io::pipe().expect("pipe").0.as_fd()), Served::Unknown);
}

/// A file system of FUSE. It is gone when dropped.
struct Fuse {
    dir: tempfile::TempDir,
    /// Whoever reads and writes it is the server.
    device: File,
}

impl Fuse {
    fn mount() -> Result<Fuse, String> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|e| format!("no FUSE here: {e}"))?;
        let dir = tempfile::tempdir().expect("directory");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let (at, options) = (path(&dir), CString::new(options).expect("options"));
        let (kind, data) = (c"fuse".as_ptr(), options.as_ptr().cast());
        // SAFETY: all pointers are to strings that end, and live as long as the call.
        if unsafe { libc::mount(kind, at.as_ptr(), kind, 0, data) } != 0 {
            return Err(format!("mounting: {}", std::io::Error::last_os_error()));
        }
        Ok(Fuse { dir, device })
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let at = path(&self.dir);
        // SAFETY: the path is a string that ends, and lives as long as the call.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    }
}

fn path(dir: &tempfile::TempDir) -> CString {
    CString::new(dir.path().to_str().expect("text")).expect("path")
}

#[test]
fn a_server_that_never_answers_is_found_out() {
    let _watchdog = Watchdog::watch("asking about a file of a server that never answers");
    let fuse = match Fuse::mount() {
        Ok(fuse) => fuse,
        Err(why) => return println!("skipped: {why}"),
    };
    let place = rustix::fs::open(fuse.dir.path(), OFlags::PATH, Mode::empty()).expect("open");
    let served = || file_system_served(place.as_fd()).expect("/proc");
    assert_eq!(served(), Served::ByOthers("fuse".into()));
    drop(fuse);
    assert_eq!(served(), Served::Unknown, "it is mounted no more");
}

/// What the server was asked, by the numbers of `linux/fuse.h`.
const FLUSH: u32 = 25;
const RELEASE: u32 = 18;

/// Serves one empty file, `a`. Tells of each close, and answers those only when told to.
fn serve(mut device: File, asked: &Sender<u32>, answer: &Receiver<()>) {
    let mut buf = vec![0; 1 << 20];
    while let Ok(len) = device.read(&mut buf) {
        let request = &buf[..len];
        let opcode = u32::from_ne_bytes(*request[4..].first_chunk().expect("opcode"));
        let words = |words: &[u32]| words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<u8>>();
        let (error, body) = match opcode {
            // LOOKUP: node 2, a file; nothing is remembered.
            1 if &request[40..] == b"a\0" => {
                let mut entry = vec![0; 128];
                entry[0] = 2;
                entry[40] = 2;
                entry[100..104].copy_from_slice(&(libc::S_IFREG | 0o644).to_ne_bytes());
                entry[104] = 1;
                (0, entry)
            }
            // FORGET, INTERRUPT, BATCH_FORGET
            2 | 36 | 42 => continue,
            // OPEN
            14 => (0, words(&[0; 4])),
            // INIT: version 7.31, nothing optional.
            26 => {
                let mut out = words(&[7, 31, 65536, 0, 0, 65536, 1]);
                out.resize(64, 0);
                (0, out)
            }
            FLUSH | RELEASE => {
                asked.send(opcode).expect("somebody listens");
                if opcode == FLUSH && answer.recv().is_err() {
                    return;
                }
                (0, Vec::new())
            }
            _ => (-libc::ENOSYS, Vec::new()),
        };
        let head = words(&[16 + body.len() as u32, error.cast_unsigned()]);
        // Whoever asked may have gone.
        let _ = device.write(&[&head[..], &request[8..16], &body].concat());
    }
}

/// What makes it dangerous to receive descriptors of strangers; those that are never received cost nothing.
#[test]
fn closing_waits_for_the_server_unless_it_was_never_received() {
    let _watchdog = Watchdog::watch("closing a file that a thread of this test serves");
    let fuse = match Fuse::mount() {
        Ok(fuse) => fuse,
        Err(why) => return println!("skipped: {why}"),
    };
    let device = fuse.device.try_clone().expect("duplicate");
    let ((asked, ask), (go, answer)) = (channel(), channel());
    let server = std::thread::spawn(move || serve(device, &asked, &answer));
    let file = File::open(fuse.dir.path().join("a")).expect("open");
    let received = file.try_clone().expect("duplicate");
    let (here, there) = Socket::pair().expect("pair");
    here.send(b"x", &[file.as_fd()]).expect("send");
    let closing = std::thread::spawn(move || drop(file));
    assert_eq!(ask.recv(), Ok(FLUSH));
    assert!(!closing.is_finished(), "it waits for the answer");
    go.send(()).expect("server");
    closing.join().expect("closed");
    // The last but one is closed, so that the packet holds the file alone.
    let closing = std::thread::spawn(move || drop(received));
    assert_eq!(ask.recv(), Ok(FLUSH));
    go.send(()).expect("server");
    closing.join().expect("closed");
    drop((here, there));
    assert_eq!(ask.recv(), Ok(RELEASE), "nobody was asked before");
    drop(fuse);
    server.join().expect("server");
}
