//! Trapping, tracking and copying in our own address space.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::{Attempt, Finding, require, scratch};
use crate::map::{AccessError, FileMap, StoredPages};
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
    let uffd = Arc::new(uffd);
    let file = Arc::new(scratch(1)?);
    let page = page_bytes();
    let map = FileMap::new(&file, 0, page, true).map_err(|e| e.to_string())?;
    let (faults, first_fault) = mpsc::channel();
    let outcome = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut events = Vec::new();
            while let Ok(Wakeup::Events) = uffd.wait(&mut events, None) {
                if events.iter().any(|e| matches!(e, Event::Fault(_))) {
                    let _ = faults.send(());
                }
            }
        });
        let outcome = (|| {
            map.trap(&uffd, 0..page).map_err(|e| e.to_string())?;
            let toucher = scope.spawn(|| touch(&map));
            let told = first_fault.recv_timeout(Duration::from_secs(5));
            // Home before anything else, or the thread would wait for ever.
            map.untrap(&uffd, 0..page).map_err(|e| e.to_string())?;
            require(told.is_ok(), "a touch of a page that is away was not told")?;
            let value = toucher.join().map_err(|_| "the touching thread died".to_owned())?;
            require(matches!(value, Ok(1)), "a page came home with other contents")
        })();
        uffd.stop().map_err(|e| e.to_string())?;
        reader.join().map_err(|_| "the reading thread died".to_owned())?;
        outcome
    });
    outcome.map(|()| "a page went away, was waited for and came home".to_owned())
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
