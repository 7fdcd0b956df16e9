//! Trapping, tracking and copying in our own address space.

use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Attempt, Finding, require, scratch};
use crate::map::{AccessError, FileMap, MapError, StoredPages};
use crate::page_bytes;
use crate::store_tracker::StoreTracker;
use crate::uffd::{Event, Uffd, UffdMode, Wakeup};

pub(super) const ATTEMPTS: &[Attempt] = &[
    Attempt {
        name: "userfaultfd",
        run: round_trip,
        then: "pages may stay away after a pin; this program's accesses wait for them",
        otherwise: "nothing may stay away from this program's mappings: release writes back",
    },
    Attempt {
        name: "userfaultfd-kernel",
        run: kernel_accesses,
        then: "system calls on mapped memory that is away wait for it",
        otherwise: "system calls on mapped memory that is away fail with EFAULT: give access to \
                    /dev/userfaultfd, or set vm.unprivileged_userfaultfd to 1",
    },
    Attempt {
        name: "userfaultfd-thread-id",
        run: || with_uffd(Uffd::tells_thread, "faults tell their thread"),
        then: "a thread that waits for what it holds itself is found out",
        otherwise: "a thread that waits for what it holds itself waits for ever",
    },
    Attempt {
        name: "userfaultfd-poison",
        run: || with_uffd(Uffd::can_poison, "pages can be made to fail"),
        then: "a system call that waits for what its thread holds can be ended",
        otherwise: "a system call that waits for what its thread holds waits for ever",
    },
    Attempt {
        name: "store-tracking",
        run: tracking,
        then: "after stores through mappings only the pages stored to move again",
        otherwise: "after a mapping was exposed for writing, all of it moves again",
    },
    Attempt {
        name: "process-vm",
        run: process_vm,
        then: "mapped bytes are copied without risk of SIGBUS",
        otherwise: "mapped bytes cannot be copied without risk of SIGBUS",
    },
];

fn with_uffd(has: fn(&Uffd) -> bool, what: &str) -> Finding {
    let uffd = Uffd::open().map_err(|e| e.to_string())?;
    require(has(&uffd), &format!("not {what}")).map(|()| what.to_owned())
}

fn round_trip() -> Finding {
    let uffd = Uffd::open().map_err(|e| e.to_string())?;
    touch_while_away(uffd, |map| map.load::<u8>(0))
}

fn kernel_accesses() -> Finding {
    let uffd = Uffd::open_mode(UffdMode::KernelAndUser).map_err(|e| e.to_string())?;
    touch_while_away(uffd, |map| {
        let mut byte = [0];
        map.copy_out(0, &mut byte).map(|()| byte[0])
    })
}

/// A page goes away, a thread touches it, the page comes home, the thread goes on.
fn touch_while_away(uffd: Uffd, touch: fn(&FileMap) -> Result<u8, AccessError>) -> Finding {
    let bring = |map: &FileMap, uffd: &Arc<Uffd>| map.untrap(uffd, 0..page_bytes());
    round(Arc::new(uffd), touch, bring)
}

/// The threads are not waited for if the page does not come home: the one that touches it never ends
/// then, and what was found out has to be told nevertheless.
fn round(
    uffd: Arc<Uffd>,
    touch: fn(&FileMap) -> Result<u8, AccessError>,
    bring: impl Fn(&FileMap, &Arc<Uffd>) -> Result<(), MapError>,
) -> Finding {
    let file = Arc::new(scratch(1)?);
    let page = page_bytes();
    let map = Arc::new(FileMap::new(&file, 0, page, true).map_err(|e| e.to_string())?);
    let (tell, told) = mpsc::channel();
    let reads = Arc::clone(&uffd);
    let reader = start(move || {
        let mut events = Vec::new();
        while let Ok(Wakeup::Events) = reads.wait(&mut events, None) {
            if events.iter().any(|e| matches!(e, Event::Fault(_))) {
                let _ = tell.send(());
            }
        }
    })?;
    let outcome = (|| {
        map.trap(&uffd, 0..page).map_err(|e| e.to_string())?;
        let touched = Arc::clone(&map);
        let toucher = start(move || touch(&touched));
        let told = toucher.is_ok() && told.recv_timeout(Duration::from_secs(5)).is_ok();
        // Home before anything else, or the thread would wait for ever.
        bring(&map, &uffd).map_err(|e| format!("a page did not come home: {e}"))?;
        let value = toucher?.join().map_err(|_| "the touching thread died".to_owned())?;
        require(told, "a touch of a page that is away was not told")?;
        require(matches!(value, Ok(1)), "a page came home with other contents")
    })();
    uffd.stop().map_err(|e| e.to_string())?;
    reader.join().map_err(|_| "the reading thread died".to_owned())?;
    outcome.map(|()| "a page went away, was waited for and came home".to_owned())
}

/// A thread, which this user or this container may not be granted.
fn start<T: Send + 'static>(
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, String> {
    thread::Builder::new().spawn(body).map_err(|e| format!("no thread to try with: {e}"))
}

fn tracking() -> Finding {
    let tracker = Arc::new(StoreTracker::open().map_err(|e| e.to_string())?);
    let file = Arc::new(scratch(3)?);
    let page = page_bytes();
    let map = FileMap::tracked(&file, 0, 3 * page, true, &tracker).map_err(|e| e.to_string())?;
    let scan = || map.scan_stores(0..3 * page).map_err(|e| e.to_string());
    scan()?;
    require(scan()? == StoredPages::Known(Vec::new()), "pages count as stored to for ever")?;
    map.store(page, 2_u64).map_err(|e| e.to_string())?;
    let stored = (page..2 * page, scan()?);
    require(stored.1 == StoredPages::Known(vec![stored.0]), "a store was not found, or too much")?;
    Ok("one store to one of three pages was found".to_owned())
}

fn process_vm() -> Finding {
    let file = Arc::new(scratch(1)?);
    let page = page_bytes();
    let map = FileMap::new(&file, 0, 2 * page, true).map_err(|e| e.to_string())?;
    let mut bytes = vec![0; page];
    map.copy_out(0, &mut bytes).map_err(|e| e.to_string())?;
    let beyond = map.copy_out(page, &mut bytes);
    require(
        matches!(beyond, Err(AccessError::PastEof { .. })),
        "copying beyond the end of a file is not refused as expected",
    )?;
    Ok("copies, and stops at the end of the file".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The thread that touches the page is left behind, and this test with it ends.
    #[test]
    fn a_page_that_does_not_come_home_is_a_finding_and_not_a_hang() {
        let Ok(uffd) = Uffd::open() else { return };
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let failing = |_: &FileMap, _: &Arc<Uffd>| Err(MapError::Empty);
            tell.send(round(Arc::new(uffd), |map| map.load::<u8>(0), failing))
        });
        let finding = told.recv_timeout(Duration::from_secs(60)).expect("an end within a minute");
        let error = finding.expect_err("it did not come home");
        assert!(error.contains("did not come home"), "{error}");
    }
}
