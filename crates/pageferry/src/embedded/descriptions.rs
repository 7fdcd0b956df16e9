//! Descriptions of one file that take over at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use pageferry_soft::{SoftConfig, SoftDevice};

use super::{Embedded, Opening};
use crate::service::FileService;
use crate::{CacheConfig, Coherence};

const ROUNDS: u32 = 400;

fn cache() -> Arc<Embedded> {
    let soft = SoftConfig {
        frame_bytes: 64 << 10,
        capacity_bytes: 256 << 10,
        workers: 1,
        ..SoftConfig::default()
    };
    let device = Arc::new(SoftDevice::new(soft).unwrap());
    Embedded::new(device, CacheConfig::default().flush_age(None)).unwrap()
}

/// A file that nobody has open.
fn path() -> tempfile::TempPath {
    tempfile::NamedTempFile::new().unwrap().into_temp_path()
}

fn open(cache: &Embedded, path: &std::path::Path, writable: bool) -> Opening {
    let file = std::fs::File::options().read(true).write(writable).open(path).unwrap();
    cache.open_fd_as(std::os::fd::AsFd::as_fd(&file), "f".into()).unwrap()
}

/// Runs both at the same moment.
fn at_once<T: Send>(one: impl FnOnce() -> T + Send, other: impl FnOnce() -> T + Send) -> (T, T) {
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            start.wait();
            one()
        });
        start.wait();
        let other = other();
        (thread.join().unwrap(), other)
    })
}

/// What was made from one for reading does not replace the one for writing.
#[test]
fn a_new_description_does_not_undo_an_opening_for_writing() {
    let cache = cache();
    let path = path();
    for round in 0..ROUNDS {
        let reader = open(&cache, &path, false);
        let opened = AtomicBool::new(false);
        let renew = || {
            while !opened.load(Ordering::SeqCst) {
                reader.take_new_description().unwrap();
            }
            None
        };
        let write = || {
            let writer = open(&cache, &path, true);
            opened.store(true, Ordering::SeqCst);
            Some(writer)
        };
        let (_, writer) = at_once(renew, write);
        assert!(reader.backing.io().is_writable(), "round {round}");
        for opening in [Some(reader), writer].into_iter().flatten() {
            opening.close().unwrap();
        }
    }
}

/// The guard watches over the description that the cache uses: another would count as somebody else's.
#[test]
fn two_new_descriptions_at_once_leave_one() {
    let cache = cache();
    let path = path();
    let opening = open(&cache, &path, true);
    match opening.coherence().unwrap() {
        Coherence::Proven => {}
        other => return eprintln!("skipped: {other:?}"),
    }
    for round in 0..ROUNDS {
        let renew = || (0..5).for_each(|_| opening.take_new_description().unwrap());
        at_once(renew, renew);
        assert_eq!(opening.coherence().unwrap(), Coherence::Proven, "round {round}");
    }
    opening.close().unwrap();
}
