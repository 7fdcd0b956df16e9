//! What every test of the cache needs: a device, a file, and a plain model of its bytes.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::PathBuf;
use std::sync::Arc;

use pageferry::serve::{Limits, Listener};
use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{Cache, CacheConfig, File, PinMode, Server};

pub const FRAME: u64 = 64 << 10;
pub const PAGE: u64 = 4096;

/// A cache of so many 64 KiB frames, with its device and a scratch directory: one of this process, or, in the
/// test program that says so, that of a daemon (which runs in this process, too).
pub struct Rig {
    pub cache: Cache,
    pub device: Arc<SoftDevice>,
    pub dir: tempfile::TempDir,
    pub server: Option<Server>,
}

/// The cache is a daemon's.
pub fn connected() -> bool {
    crate::CONNECTED || std::env::var_os("PAGEFERRY_CONNECTED").is_some()
}

pub fn rig(frames: u64) -> Rig {
    // No flusher: what is away stays away until a test says otherwise.
    rig_with(frames, CacheConfig::default().flush_age(None))
}

pub fn rig_with(frames: u64, config: CacheConfig) -> Rig {
    let soft = SoftConfig {
        frame_bytes: FRAME,
        capacity_bytes: frames * FRAME,
        workers: 2,
        exportable: connected(),
        ..SoftConfig::default()
    };
    let device = Arc::new(SoftDevice::new(soft).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let (cache, server) = cache_on(device.clone(), config, &dir.path().join("socket"));
    Rig { cache, device, dir, server }
}

/// A cache of this process, or that of a daemon at a socket.
pub fn cache_on(
    device: Arc<SoftDevice>,
    config: CacheConfig,
    socket: &std::path::Path,
) -> (Cache, Option<Server>) {
    if !connected() {
        return (Cache::new(device, config).unwrap(), None);
    }
    let listener = Listener::bind(socket, 0o600).unwrap();
    let mut limits = Limits::default();
    limits.served_file_systems = true;
    let server = Server::start(device, config, limits, listener).unwrap();
    (Cache::connect(socket).unwrap(), Some(server))
}

impl Rig {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file with the pattern's bytes.
    pub fn file(&self, name: &str, bytes: u64) -> File {
        std::fs::write(self.path(name), pattern(bytes)).unwrap();
        self.cache.open(self.path(name)).unwrap()
    }

    pub fn on_disk(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub fn stat(&self, name: &str) -> u64 {
        self.cache.stats().get(name).unwrap_or_else(|| panic!("no counter {name}"))
    }
}

/// Bytes that differ from page to page and inside pages.
pub fn pattern(bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| (at ^ (at >> 8) ^ (at >> 13)) as u8).collect()
}

/// Why a guard cannot be had for a file here.
pub fn missing(r: &Rig, f: &File) -> Option<String> {
    let pin = f.pin(0..1, PinMode::Write).unwrap();
    pin.view().unwrap().write(0, &[0]).unwrap();
    let kept = pin.release_with(pageferry::After::KeepAway);
    f.flush(0..PAGE).unwrap();
    drop(std::fs::File::open(r.path("a")).unwrap());
    kept.err().map(|e| e.to_string())
}

/// A shared mapping of one page of a file, as a stranger would have it.
pub struct ForeignPage(*mut libc::c_void);

pub fn mapped(file: &std::fs::File, at: u64, writable: bool) -> ForeignPage {
    use std::os::fd::AsRawFd;
    let access = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    let (len, fd) = (PAGE as usize, file.as_raw_fd());
    // SAFETY: a new mapping where nothing is.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd, at.cast_signed())
    };
    assert_ne!(at, libc::MAP_FAILED, "mmap");
    ForeignPage(at)
}

impl ForeignPage {
    pub fn store(&self, offset: usize, byte: u8) {
        assert!(offset < PAGE as usize);
        // SAFETY: inside the mapping.
        let at = unsafe { self.0.cast::<u8>().add(offset) };
        // SAFETY: mapped for writing; others may change it as well: volatile, one byte.
        unsafe { at.write_volatile(byte) };
    }
}

impl Drop for ForeignPage {
    fn drop(&mut self) {
        // SAFETY: mapped by us, with this length; nobody uses it any more.
        unsafe { libc::munmap(self.0, PAGE as usize) };
    }
}

/// What the device sees of a range.
pub fn device_reads(file: &File, range: std::ops::Range<u64>) -> Vec<u8> {
    let mut buf = vec![0xAA; (range.end - range.start) as usize];
    let pin = file.pin(range.clone(), PinMode::Read).unwrap();
    pin.view().unwrap().read(range.start, &mut buf).unwrap();
    pin.release().unwrap();
    buf
}

/// The device writes bytes under a write pin of exactly their range.
pub fn device_writes(file: &File, at: u64, bytes: &[u8], after: pageferry::After) {
    let pin = file.pin(at..at + bytes.len() as u64, PinMode::Write).unwrap();
    pin.view().unwrap().write(at, bytes).unwrap();
    pin.release_with(after).unwrap();
}

/// Compares two files' worth of bytes and names the first difference.
#[track_caller]
pub fn same(got: &[u8], expected: &[u8], what: &str) {
    if let Some(at) = got.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{what}: byte {at} is {}, not {}", got[at], expected[at]);
    }
    assert_eq!(got.len(), expected.len(), "{what}: the length differs");
}

/// Runs a test that might hang, which is then its failure.
pub fn within(seconds: u64, test: impl FnOnce() + Send + 'static) {
    let (done, end) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        // Nobody listens any more if it took too long.
        let _ = done.send(());
    });
    let limit = std::time::Duration::from_secs(seconds);
    if end.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        panic!("it hangs");
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A small generator: runs differ, and a run's seed is printed when it fails.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % sides
    }
}
