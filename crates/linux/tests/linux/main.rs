//! What the crate promises, and what it found out about the kernel, tried on the running system.

#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges are what scans give")]

mod child;
mod copies;
mod files;
mod forks;
mod gates;
mod limits;
mod listeners;
mod maps;
mod privileges;
mod reader;
mod sealed;
mod served;
mod shapes;
mod signals;
mod sockets;
mod stores;
mod stress;
mod threads;
mod traps;
mod watch;

use std::os::fd::AsFd;
use std::sync::Arc;

use pageferry_linux::{FileMap, HostFile, page_bytes};

/// A file without a name, of the given bytes, ours alone.
fn file_of(bytes: &[u8]) -> Arc<HostFile> {
    let named = tempfile::tempfile().expect("temporary file");
    let file = HostFile::from_fd(named.as_fd()).expect("open anew");
    file.write_at(bytes, 0).expect("fill");
    Arc::new(file)
}

/// A file of `pages` pages; every byte of page `n` is `n + 1`.
fn file_of_pages(pages: usize) -> Arc<HostFile> {
    let page = page_bytes();
    let bytes: Vec<u8> = (0..pages * page).map(|at| (at / page + 1) as u8).collect();
    file_of(&bytes)
}

/// Reclaims all of a map's pages that are clean.
fn page_out(map: &FileMap) {
    // SAFETY: the advice changes no contents, of the file's pages or of placeholders.
    let rc = unsafe { libc::madvise(map.as_ptr().cast(), map.len(), libc::MADV_PAGEOUT) };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
}

/// Whether a call is not supported here, which skips a test.
fn unsupported(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

/// Ends the whole test run, with a message, if it lives for a minute: for tests whose failure is
/// that they never end.
struct Watchdog(std::sync::mpsc::Sender<()>);

impl Watchdog {
    fn watch(what: &'static str) -> Watchdog {
        let (alive, ended) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            let minute = std::time::Duration::from_secs(60);
            if ended.recv_timeout(minute) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("hangs: {what}");
                std::process::abort();
            }
        });
        Watchdog(alive)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // The sender's end is all that the thread waits for.
        let _ = self.0.send(());
    }
}
