//! Copies between traps and scans.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pageferry_linux::{AccessError, FileMap, StoreTracker, StoredPages, UffdMode, page_bytes};

use crate::reader::Reader;
use crate::{Watchdog, file_of_pages};

/// The bytes of a map, as a caller's buffer that takes its time: reading it waits while it is away.
///
/// # Safety
/// Nobody stores to the map's file meanwhile.
unsafe fn slow(map: &FileMap) -> &[u8] {
    // SAFETY: mapped for as long as the map is borrowed, and not changed, by the caller's word.
    unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len()) }
}

/// The kernel pins the pages of `process_vm_writev` before it looks at the other side: a trap that
/// came in between stopped nothing.
#[test]
fn a_copy_does_not_reach_the_file_once_a_trap_is_through() {
    let Some(reader) = Reader::start(UffdMode::KernelAndUser) else { return };
    let page = page_bytes();
    let (file, other) = (file_of_pages(2), file_of_pages(2));
    let map = FileMap::new(&file, 0, 2 * page, true).expect("map");
    let source = FileMap::new(&other, 0, 2 * page, false).expect("map");
    source.trap(&reader.uffd, 0..2 * page).expect("trap");
    thread::scope(|scope| {
        // SAFETY: nobody stores to `other`.
        let copier = scope.spawn(|| map.copy_in(page, unsafe { &slow(&source)[..page] }));
        let fault = reader.fault();
        assert!(source.offset_of(fault.addr).is_some(), "it waits for the caller's buffer");
        map.trap(&reader.uffd, 0..2 * page).expect("trap");
        source.untrap(&reader.uffd, 0..2 * page).expect("untrap");
        let fault = reader.fault();
        assert!(map.offset_of(fault.addr).is_some(), "and then for the map");
        let mut bytes = vec![0; page];
        file.read_at(&mut bytes, page as u64).expect("read");
        assert_eq!(bytes, vec![2; page], "a store came past the trap");
        map.untrap(&reader.uffd, 0..2 * page).expect("untrap");
        copier.join().expect("copier").expect("copy");
        file.read_at(&mut bytes, page as u64).expect("read");
        assert_eq!(bytes, vec![1; page]);
    });
}

#[test]
fn a_copy_that_ends_after_a_scan_is_in_the_next() {
    let Some(reader) = Reader::any() else { return };
    let tracker = match StoreTracker::open() {
        Ok(tracker) => Arc::new(tracker),
        Err(e) => return println!("skipped: {e}"),
    };
    let page = page_bytes();
    let (file, other) = (file_of_pages(2), file_of_pages(2));
    let map = FileMap::tracked(&file, 0, 2 * page, true, &tracker).expect("map");
    let source = FileMap::new(&other, 0, 2 * page, false).expect("map");
    source.trap(&reader.uffd, 0..2 * page).expect("trap");
    let scan = || map.scan_stores(0..2 * page).expect("scan");
    scan();
    thread::scope(|scope| {
        // SAFETY: nobody stores to `other`.
        let copier = scope.spawn(|| map.copy_in(page, unsafe { &slow(&source)[..page] }));
        reader.fault();
        scan();
        source.untrap(&reader.uffd, 0..2 * page).expect("untrap");
        copier.join().expect("copier").expect("copy");
    });
    assert_eq!(scan(), StoredPages::Known(vec![(page..2 * page)]));
}

/// Copies share the map with each other, and a trap between them gets its turn.
#[test]
fn copies_without_pause_do_not_keep_a_trap_out() {
    let _bounded = Watchdog::watch("a trap between copies");
    let Some(reader) = Reader::start(UffdMode::KernelAndUser) else { return };
    let page = page_bytes();
    let file = file_of_pages(64);
    let map = FileMap::new(&file, 0, 64 * page, true).expect("map");
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut bytes = vec![0; 32 * page];
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    map.copy_out(0, &mut bytes).expect("copy");
                }
            });
        }
        for _ in 0..200 {
            map.trap(&reader.uffd, 48 * page..64 * page).expect("trap");
            map.untrap(&reader.uffd, 48 * page..64 * page).expect("untrap");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// The caller's buffer is in the very map, and away: whoever brings it home needs what a copy holds.
#[test]
fn a_map_may_be_copied_into_itself() {
    let _bounded = Watchdog::watch("a copy from a map into itself");
    let Some(reader) = Reader::start(UffdMode::KernelAndUser) else { return };
    let page = page_bytes();
    let file = file_of_pages(4);
    let map = FileMap::new(&file, 0, 4 * page, true).expect("map");
    map.trap(&reader.uffd, 0..page).expect("trap");
    thread::scope(|scope| {
        let copier = scope.spawn(|| {
            // SAFETY: the first page is not stored to.
            let source = unsafe { std::slice::from_raw_parts(map.as_ptr(), page) };
            map.copy_in(2 * page, source)
        });
        reader.fault();
        map.untrap(&reader.uffd, 0..page).expect("untrap");
        copier.join().expect("copier").expect("copy");
    });
    assert_eq!(map.load::<u8>(2 * page + 9).expect("load"), 1);
    assert!(reader.fault_within(Duration::ZERO).is_none());
}

#[test]
fn a_copy_tells_how_far_it_came_before_what_is_away() {
    let Some(reader) = Reader::start(UffdMode::UserOnly) else { return };
    let page = page_bytes();
    let file = file_of_pages(40);
    let map = FileMap::new(&file, 0, 40 * page, true).expect("map");
    map.trap(&reader.uffd, 30 * page..31 * page).expect("trap");
    let mut bytes = vec![0; 40 * page - 7];
    match map.copy_out(7, &mut bytes) {
        Err(AccessError::Away { done, at }) => assert_eq!((done, at), (30 * page - 7, 30 * page)),
        other => panic!("{other:?}"),
    }
    assert_eq!((bytes[30 * page - 8], bytes[30 * page - 7]), (30, 0));
}
