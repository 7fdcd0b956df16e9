//! Forked children.

use std::sync::Arc;

use pageferry_linux::{AccessError, FileMap, MapError, StoreTracker, Uffd, page_bytes};

use crate::reader::Reader;
use crate::{child, file_of_pages};

/// A load through a pointer kept across the fork.
fn peek(map: &FileMap, at: usize) -> i32 {
    // SAFETY: in the parent this is a byte of the map; in a child the signal is what is waited for.
    i32::from(unsafe { map.as_ptr().wrapping_add(at).read_volatile() })
}

/// Whether anonymous memory of all sizes, wherever the kernel puts it, comes to be in the map.
fn lands_inside(map: &FileMap) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    (0..64).any(|n| {
        let bytes = page_bytes() << (n % 8);
        let null = std::ptr::null_mut();
        // SAFETY: a fresh mapping at a place of the kernel's choice.
        let at = unsafe { libc::mmap(null, bytes, libc::PROT_READ, flags, -1, 0) };
        let base = map.as_ptr().addr();
        at != libc::MAP_FAILED && at.addr() < base + map.len() && base < at.addr() + bytes
    })
}

/// The memory of a map is a hole in a child, which its allocator used to fill: safe calls then read
/// and changed the child's own heap.
#[test]
fn a_forked_child_is_refused_and_has_nothing_where_the_map_is() {
    let page = page_bytes();
    let file = file_of_pages(64);
    let map = FileMap::new(&file, 0, 64 * page, true).expect("map");
    map.store(0, 1_u8).expect("store");
    assert_eq!(child::fork(|| peek(&map, 0)), Err(libc::SIGSEGV));
    let outcome = child::fork(|| {
        if lands_inside(&map) {
            return 1;
        }
        let refusals = [
            matches!(map.load::<u8>(0), Err(AccessError::Forked)),
            matches!(map.store(0, 9_u8), Err(AccessError::Forked)),
            matches!(map.copy_in(0, &[9]), Err(AccessError::Forked)),
            matches!(map.copy_out(0, &mut [9]), Err(AccessError::Forked)),
            matches!(map.scan_stores(0..page), Err(MapError::Forked)),
        ];
        if refusals.contains(&false) {
            return 2;
        }
        // Dropping it does not unmap what has come to be at its place.
        let to = map.as_ptr().cast();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the child has nothing of its own at this place.
        let own = unsafe { libc::mmap(to, page, libc::PROT_READ, flags, -1, 0) };
        // SAFETY: the child's copy of the value is never used again.
        drop(unsafe { std::ptr::read(&map) });
        let mut vector = 0_u8;
        // SAFETY: asks about one page, into one byte.
        let mapped = unsafe { libc::mincore(own, page, &mut vector) } == 0;
        if mapped { 0 } else { 3 }
    });
    assert_eq!(outcome, Ok(0));
    assert_eq!(map.load::<u8>(0).expect("load"), 1);
}

#[test]
fn a_place_that_was_guarded_is_free_once_the_map_is_gone() {
    const NAME: &str = "forks::a_place_that_was_guarded_is_free_once_the_map_is_gone";
    // In a process of its own, where nobody else maps anything at that place.
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let page = page_bytes();
    let file = file_of_pages(4);
    let (base, kept) = {
        let map = FileMap::new(&file, 0, 4 * page, true).expect("map");
        (map.as_ptr(), FileMap::new(&file, 0, 4 * page, true).expect("map"))
    };
    let mapped = child::fork(|| {
        let mut vector = [0_u8; 4];
        // SAFETY: asks about four pages, into four bytes.
        let unmapped = unsafe { libc::mincore(base.cast(), 4 * page, vector.as_mut_ptr()) } != 0;
        // SAFETY: as above.
        let guarded =
            unsafe { libc::mincore(kept.as_ptr().cast(), 4 * page, vector.as_mut_ptr()) } == 0;
        i32::from(!(unmapped && guarded))
    });
    assert_eq!(mapped, Ok(0));
}

#[test]
fn a_child_that_touches_what_is_away_dies_and_never_sees_zeros() {
    let Some(reader) = Reader::any() else { return };
    let page = page_bytes();
    let file = file_of_pages(3);
    let map = FileMap::new(&file, 0, 3 * page, true).expect("map");
    map.trap(&reader.uffd, page..2 * page).expect("trap");
    for at in [0, page, 2 * page] {
        assert_eq!(child::fork(|| peek(&map, at)), Err(libc::SIGSEGV), "at {at}");
    }
    map.untrap(&reader.uffd, page..2 * page).expect("untrap");
    let seen = child::fork(|| peek(&map, page));
    assert_eq!(seen, Err(libc::SIGSEGV), "what came home is kept from children as well");
    assert_eq!(map.load::<u8>(page).expect("load"), 2);
}

/// Both descriptors act on the memory of the process that opened them.
#[test]
fn a_child_cannot_use_its_parents_userfaultfd_and_tracker() {
    let Some(reader) = Reader::any() else { return };
    let Ok(tracker) = StoreTracker::open().map(Arc::new) else { return };
    let page = page_bytes();
    let file = file_of_pages(2);
    let outcome = child::fork(|| {
        let Ok(map) = FileMap::new(&file, 0, 2 * page, true) else { return 1 };
        let mut events = Vec::new();
        let refusals = [
            matches!(map.trap(&reader.uffd, 0..page), Err(MapError::Forked)),
            matches!(map.wake(&reader.uffd, 0..page), Err(MapError::Forked)),
            reader.uffd.wait(&mut events, None).is_err(),
            reader.uffd.stop().is_err(),
            matches!(FileMap::tracked(&file, 0, page, true, &tracker), Err(MapError::Forked)),
            map.load::<u8>(page).is_ok_and(|byte| byte == 2),
            // With its own it works as in any process.
            Uffd::open().is_ok(),
            StoreTracker::open().map(Arc::new).is_ok_and(|own| {
                let map = FileMap::tracked(&file, 0, page, true, &own);
                map.is_ok_and(|map| map.scan_stores(0..page).is_ok())
            }),
        ];
        match refusals.iter().position(|ok| !ok) {
            None => 0,
            Some(at) => 10 + at as i32,
        }
    });
    assert_eq!(outcome, Ok(0));
    // The parent's reader has not been stopped.
    let map = FileMap::new(&file, 0, 2 * page, true).expect("map");
    map.trap(&reader.uffd, 0..page).expect("trap");
    map.untrap(&reader.uffd, 0..page).expect("untrap");
}
