//! A file system in user space with one file, which its server changes without the kernel's knowledge,
//! as another machine would behind a network file system.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::*;
use crate::strangers::{filled, keep};
use crate::ways::Page;
use pageferry::{Cache, CacheConfig, Coherence, PinMode, Validation};

const PAGES: u64 = 8;
const ALL: std::ops::Range<u64> = 0..PAGES * PAGE;

/// What makes the server fall silent.
#[derive(Default)]
struct Silence(Mutex<Waiting>, Condvar);

#[derive(Default)]
struct Waiting {
    /// So many requests more are answered.
    after: Option<u32>,
    silent: bool,
    /// Nobody has ended the silence: a process of which a request is never answered could not end.
    forgotten: bool,
    /// Whoever makes the requests has made its last.
    done: bool,
}

impl Silence {
    fn begin_after(&self, answers: u32) {
        *self.0.lock().unwrap() = Waiting { after: Some(answers), ..Waiting::default() };
    }

    /// The server's side: a request has come.
    fn keep(&self) {
        let mut waiting = self.0.lock().unwrap();
        match &mut waiting.after {
            None => return,
            Some(0) => {}
            Some(left) => return *left -= 1,
        }
        (waiting.after, waiting.silent) = (None, true);
        self.1.notify_all();
        let limit = Duration::from_secs(20);
        let (mut waiting, waited) =
            self.1.wait_timeout_while(waiting, limit, |w| w.silent).unwrap();
        waiting.forgotten |= waited.timed_out();
    }

    /// Somebody is waiting for an answer; `false`: nobody will.
    fn has_begun(&self) -> bool {
        let waiting = self.0.lock().unwrap();
        self.1.wait_while(waiting, |w| !w.silent && !w.done).unwrap().silent
    }

    /// `done`: whoever makes the requests has made its last.
    fn end(&self, done: bool) {
        let mut waiting = self.0.lock().unwrap();
        (waiting.after, waiting.silent, waiting.done) = (None, false, done);
        self.1.notify_all();
    }

    fn was_forgotten(&self) -> bool {
        self.0.lock().unwrap().forgotten
    }
}

/// The mounted file system. It is gone when dropped.
struct Fuse {
    dir: tempfile::TempDir,
    bytes: Arc<Mutex<Vec<u8>>>,
    silence: Arc<Silence>,
    server: Option<JoinHandle<()>>,
}

impl Fuse {
    fn mount(bytes: Vec<u8>) -> Result<Fuse, String> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|e| format!("/dev/fuse: {e}"))?;
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let at =
            CString::new(dir.path().as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
        let how = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let how = CString::new(how).map_err(|e| e.to_string())?;
        let kind = c"fuse".as_ptr();
        // SAFETY: all are strings that outlive the call.
        if unsafe { libc::mount(kind, at.as_ptr(), kind, 0, how.as_ptr().cast()) } != 0 {
            return Err(format!("mounting: {}", std::io::Error::last_os_error()));
        }
        let bytes = Arc::new(Mutex::new(bytes));
        let silence = Arc::<Silence>::default();
        let (served, silent) = (Arc::clone(&bytes), Arc::clone(&silence));
        let server = Some(std::thread::spawn(move || serve(device, &served, &silent)));
        Ok(Fuse { dir, bytes, silence, server })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("a")
    }

    /// A change that the kernel does not hear of.
    fn change(&self, page: u64, number: u64) {
        let at = (page * PAGE) as usize;
        self.bytes.lock().unwrap()[at..at + 4096].copy_from_slice(&Page::of(number).0);
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.silence.end(true);
        let at = CString::new(self.dir.path().as_os_str().as_encoded_bytes()).unwrap();
        // Even if a failing test still has its file open. SAFETY: a string that outlives the call.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
        if let Some(server) = self.server.take().filter(|_| !std::thread::panicking()) {
            server.join().unwrap();
        }
    }
}

const ROOT: u64 = 1;
const FILE: u64 = 2;

fn long(request: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(*request[at..].first_chunk().unwrap())
}

fn short(request: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(*request[at..].first_chunk().unwrap())
}

/// `struct fuse_attr`.
fn attributes(node: u64, bytes: usize) -> Vec<u8> {
    let mode = if node == ROOT { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
    let long = [node, bytes as u64, (bytes as u64).div_ceil(512), 0, 0, 0].map(u64::to_ne_bytes);
    let short = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes);
    [long.concat(), short.concat()].concat()
}

/// Answers until the file system is gone.
fn serve(mut device: File, bytes: &Mutex<Vec<u8>>, silence: &Silence) {
    let mut buf = vec![0; 1 << 20];
    while let Ok(len) = device.read(&mut buf) {
        let request = &buf[..len];
        let (opcode, unique, node) = (short(request, 4), long(request, 8), long(request, 16));
        // RELEASE, which the kernel makes for itself, and what wants no answer: nobody waits for it.
        if !matches!(opcode, 2 | 18 | 36 | 42) {
            silence.keep();
        }
        let Some(answer) = answer(opcode, node, request, bytes) else { continue };
        let (error, body) = answer.map_or_else(|e| (-e, Vec::new()), |body| (0, body));
        let mut reply = (16 + body.len() as u32).to_ne_bytes().to_vec();
        reply.extend(error.to_ne_bytes());
        reply.extend(unique.to_ne_bytes());
        reply.extend(body);
        // Whoever asked may have gone.
        let _ = device.write(&reply);
    }
}

/// The answer to a request, by the numbers of `linux/fuse.h`; `None` where none is wanted.
fn answer(
    opcode: u32,
    node: u64,
    request: &[u8],
    bytes: &Mutex<Vec<u8>>,
) -> Option<Result<Vec<u8>, i32>> {
    let mut bytes = bytes.lock().unwrap();
    let attr = |node, len| [vec![0; 16], attributes(node, len)].concat();
    Some(Ok(match opcode {
        // LOOKUP; nothing is remembered, so that each look asks.
        1 if &request[40..] == b"a\0" => {
            [FILE.to_ne_bytes().to_vec(), vec![0; 32], attributes(FILE, bytes.len())].concat()
        }
        1 => return Some(Err(libc::ENOENT)),
        // FORGET, INTERRUPT, BATCH_FORGET
        2 | 36 | 42 => return None,
        // GETATTR, SETATTR
        3 => attr(node, bytes.len()),
        4 => {
            if short(request, 40) & 8 != 0 {
                bytes.resize(long(request, 56) as usize, 0);
            }
            attr(node, bytes.len())
        }
        // OPEN: each read asks the server.
        14 => [0, 0, 1, 0].map(u32::to_ne_bytes).concat(),
        // READ
        15 => {
            let from = (long(request, 48) as usize).min(bytes.len());
            let to = (from + short(request, 56) as usize).min(bytes.len());
            bytes[from..to].to_vec()
        }
        // WRITE
        16 => {
            let (from, len) = (long(request, 48) as usize, short(request, 56) as usize);
            let end = bytes.len().max(from + len);
            bytes.resize(end, 0);
            bytes[from..from + len].copy_from_slice(&request[80..80 + len]);
            [len as u32, 0].map(u32::to_ne_bytes).concat()
        }
        // STATFS
        17 => vec![0; 80],
        // RELEASE, FSYNC, FLUSH, DESTROY
        18 | 20 | 25 | 38 => Vec::new(),
        // INIT: version 7.31, nothing optional, writes of 64 KiB.
        26 => {
            let mut out = [7, 31, 65536, 0, 0, 65536, 1].map(u32::to_ne_bytes).concat();
            out.resize(64, 0);
            out
        }
        _ => return Some(Err(libc::ENOSYS)),
    }))
}

/// Nothing is proven there, and each pin asks the server.
#[test]
fn what_a_server_changes_is_seen_by_the_next_pin() {
    within(60, || {
        let fuse = match Fuse::mount(filled(PAGES, 1)) {
            Ok(fuse) => fuse,
            Err(why) => return crate::skipped!("FUSE: {why}"),
        };
        let rig = rig(16);
        let file = rig.cache.open(fuse.path()).unwrap();
        for number in 2..20 {
            let before = rig.stat("fetched_bytes");
            device_reads(&file, ALL);
            device_reads(&file, ALL);
            assert_eq!(rig.stat("fetched_bytes") - before, 2 * PAGES * PAGE, "each pin copies");
            let why = match file.coherence().unwrap() {
                Coherence::Unproven(why) => why,
                other => panic!("{other:?}"),
            };
            assert!(why.contains("without this kernel's knowledge"), "{why}");
            fuse.change(3, number);
            same(&device_reads(&file, 3 * PAGE..4 * PAGE), &Page::of(number).0, "the device");
            // A write pin takes the rest of the page from the server, and brings its bytes there.
            fuse.change(5, number);
            device_writes(&file, 5 * PAGE, &[0xAB; 100], pageferry::After::WriteBack);
            let mut page = Page::of(number).0;
            page[..100].fill(0xAB);
            same(&fuse.bytes.lock().unwrap()[5 * 4096..6 * 4096], &page, "the server");
        }
        let refused = keep(&file, 1, 99).unwrap_err();
        assert!(refused.contains("without this kernel's knowledge"), "{refused}");
        same(&fuse.bytes.lock().unwrap()[..4096], &Page::of(99).0, "written back all the same");
        file.close().unwrap();
        drop(rig);
    });
}

/// All that is done with a file once it is open.
fn use_whole(file: &pageferry::File) {
    let pin = file.pin(0..PAGE, PinMode::Write).unwrap();
    pin.view().unwrap().write(0, &[7; 100]).unwrap();
    pin.release().unwrap();
    file.write_at(&[8; 100], PAGE).unwrap();
    same(&device_reads(file, PAGE..PAGE + 100), &[8; 100], "the device");
}

/// Opens a file, uses it and closes it.
fn use_once(cache: &Cache, path: &Path) {
    let file = cache.open(path).unwrap();
    use_whole(&file);
    file.close().unwrap();
}

/// Has `there` done, whose server falls silent at each of its requests in turn, and `here` while it is silent.
fn beside_silences(fuse: &Fuse, there: impl Fn() + Send + Sync + 'static, here: impl Fn()) -> u32 {
    let there = Arc::new(there);
    for answers in 0.. {
        fuse.silence.begin_after(answers);
        let (there, silence) = (Arc::clone(&there), Arc::clone(&fuse.silence));
        let user = std::thread::spawn(move || {
            there();
            silence.end(true);
        });
        let silent = fuse.silence.has_begun();
        here();
        assert!(
            !fuse.silence.was_forgotten(),
            "held up by request {answers}, until it was answered"
        );
        fuse.silence.end(!silent);
        user.join().unwrap();
        if !silent {
            return answers;
        }
    }
    0
}

fn silent_rig(validation: Validation) -> Option<(Fuse, Rig)> {
    match Fuse::mount(filled(PAGES, 1)) {
        Ok(fuse) => {
            let config = CacheConfig::default().flush_age(None).validation(validation);
            Some((fuse, rig_with(16, config)))
        }
        Err(why) => {
            crate::skipped!("FUSE: {why}");
            None
        }
    }
}

/// Whichever request it is that the server does not answer, other files' pins are granted and released meanwhile.
#[test]
fn a_server_that_does_not_answer_holds_up_no_pins_of_other_files() {
    for validation in [Validation::Proof, Validation::Stamps] {
        within(60, move || {
            let Some((fuse, rig)) = silent_rig(validation) else { return };
            let (there, here) = (rig.cache.open(fuse.path()).unwrap(), rig.file("b", 2 * PAGE));
            let asked = beside_silences(&fuse, move || use_whole(&there), || use_whole(&here));
            assert!(asked > 5, "the server was asked {asked} times");
        });
    }
}

/// And other files are opened and closed meanwhile.
#[test]
fn a_server_that_does_not_answer_holds_up_no_opens_and_closes_of_other_files() {
    within(60, || {
        let Some((fuse, rig)) = silent_rig(Validation::Proof) else { return };
        std::fs::write(rig.path("b"), filled(2, 1)).unwrap();
        let (path, cache, here) = (fuse.path(), rig.cache.clone(), rig.path("b"));
        let there = move || use_once(&cache, &path);
        let asked = beside_silences(&fuse, there, || use_once(&rig.cache, &here));
        assert!(asked > 10, "the server was asked {asked} times");
    });
}
