//! A file system whose server does not answer, and descriptors on it.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::raw::*;
use pageferry_wire::*;

/// A file system with one file, `a`, of one page, whose server can fall silent.
struct Fuse {
    dir: tempfile::TempDir,
    silent: Arc<AtomicBool>,
    /// What it was asked while silent, by numbers.
    asked: Arc<Mutex<Vec<u32>>>,
    server: Option<std::thread::JoinHandle<()>>,
}

impl Fuse {
    fn mount() -> Result<Fuse, String> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|e| format!("/dev/fuse: {e}"))?;
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let at = path_of(&dir);
        let how = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let (how, kind) = (CString::new(how).unwrap(), c"fuse".as_ptr());
        // SAFETY: all are strings that outlive the call.
        if unsafe { libc::mount(kind, at.as_ptr(), kind, 0, how.as_ptr().cast()) } != 0 {
            return Err(format!("mounting: {}", std::io::Error::last_os_error()));
        }
        let silent = Arc::<AtomicBool>::default();
        let (heard, served) = (Arc::clone(&silent), device.try_clone().unwrap());
        let asked = Arc::<Mutex<Vec<u32>>>::default();
        let list = Arc::clone(&asked);
        let server = Some(std::thread::spawn(move || serve(served, &heard, &list)));
        Ok(Fuse { dir, silent, asked, server })
    }

    /// Off the tree; what is open stays so.
    fn detach(&self) {
        // SAFETY: a string that outlives the call.
        unsafe { libc::umount2(path_of(&self.dir).as_ptr(), libc::MNT_DETACH) };
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.silent.store(false, Ordering::SeqCst);
        self.detach();
        // Whoever fails still has its file open, and the server something to serve.
        if let Some(server) = self.server.take().filter(|_| !std::thread::panicking()) {
            server.join().unwrap();
        }
    }
}

fn path_of(dir: &tempfile::TempDir) -> CString {
    CString::new(dir.path().as_os_str().as_encoded_bytes()).unwrap()
}

fn attributes(node: u64) -> Vec<u8> {
    let mode = if node == 1 { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
    let long = [node, 4096, 8, 0, 0, 0].map(u64::to_ne_bytes);
    let short = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes);
    [long.concat(), short.concat()].concat()
}

/// By the numbers of `linux/fuse.h`. While it is silent only closes are answered.
fn serve(mut device: File, silent: &AtomicBool, asked: &Mutex<Vec<u32>>) {
    let mut buf = vec![0; 1 << 20];
    while let Ok(len) = device.read(&mut buf) {
        let long = |at: usize| u64::from_ne_bytes(*buf[at..len].first_chunk().unwrap());
        let opcode = u32::from_ne_bytes(*buf[4..len].first_chunk().unwrap());
        let (unique, node) = (long(8), long(16));
        let mut error = 0;
        let body = match opcode {
            // FORGET, INTERRUPT, BATCH_FORGET
            2 | 36 | 42 => continue,
            18 | 25 => Vec::new(),
            _ if silent.load(Ordering::SeqCst) => {
                asked.lock().unwrap().push(opcode);
                // Late, and no: if it were never, a test that fails could not even be killed.
                std::thread::sleep(std::time::Duration::from_secs(2));
                error = -libc::EIO;
                Vec::new()
            }
            1 => [2u64.to_ne_bytes().to_vec(), vec![0; 32], attributes(2)].concat(),
            3 => [vec![0; 16], attributes(node)].concat(),
            14 => [0, 0, 1, 0].map(u32::to_ne_bytes).concat(),
            15 => vec![7; 4096],
            17 => vec![0; 80],
            26 => {
                let mut out = [7, 31, 65536, 0, 0, 65536, 1].map(u32::to_ne_bytes).concat();
                out.resize(64, 0);
                out
            }
            _ => {
                error = -libc::ENOSYS;
                Vec::new()
            }
        };
        let mut reply = (16 + body.len() as u32).to_ne_bytes().to_vec();
        reply.extend(error.to_ne_bytes());
        reply.extend(unique.to_ne_bytes());
        reply.extend(body);
        // Whoever asked may have gone.
        let _ = device.write(&reply);
    }
}

/// Mounted where the daemon sees it, and off its tree, as it would be in another mount namespace: refused both
/// times without a question to the server, and others go on.
#[test]
fn files_of_a_server_that_may_never_answer_are_refused() {
    alone(120, || {
        let fuse = match Fuse::mount() {
            Ok(fuse) => fuse,
            Err(why) => return crate::skipped!("FUSE: {why}"),
        };
        let d = daemon(8);
        let file = File::open(fuse.dir.path().join("a")).unwrap();
        for detached in [false, true] {
            if detached {
                fuse.detach();
            }
            fuse.silent.store(true, Ordering::SeqCst);
            let mut raw = d.client();
            let refused = raw.show(file.as_fd(), false);
            assert!(matches!(refused, Err(Failure::Unsupported(_))), "{refused:?}");
            assert_eq!(*fuse.asked.lock().unwrap(), [0; 0], "the server was asked");
            fuse.silent.store(false, Ordering::SeqCst);
            d.serves();
        }
        drop((file, fuse));
        d.ends_clean();
    });
}
