//! Traps at the limits of what a process may have.

use std::sync::Arc;
use std::thread;

use pageferry_linux::{FileMap, MapError, StoreTracker, limits, page_bytes};

use crate::reader::Reader;
use crate::{Watchdog, child, file_of_pages};

/// `poll` refuses once the limit of open files is below the number of descriptors it is given; the
/// reader used to end for that, and everybody who waited, waited for ever.
#[test]
fn a_low_limit_of_open_files_does_not_stop_the_reader() {
    const NAME: &str = "limits::a_low_limit_of_open_files_does_not_stop_the_reader";
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let _bounded = Watchdog::watch("reading events under a low limit of open files");
    let Some(reader) = Reader::any() else { return };
    let page = page_bytes();
    let file = file_of_pages(2);
    let map = FileMap::new(&file, 0, 2 * page, true).expect("map");
    let limit = rustix::process::Rlimit { current: Some(1), maximum: Some(1) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("setrlimit");
    for _ in 0..3 {
        map.trap(&reader.uffd, page..2 * page).expect("trap");
        thread::scope(|scope| {
            let toucher = scope.spawn(|| map.load::<u8>(page).expect("load"));
            reader.fault();
            map.untrap(&reader.uffd, page..2 * page).expect("untrap");
            assert_eq!(toucher.join().expect("toucher"), 2);
        });
    }
}

#[test]
fn neighbours_that_are_away_merge_and_what_comes_home_too() {
    const NAME: &str = "limits::neighbours_that_are_away_merge_and_what_comes_home_too";
    // In a process of its own, whose mappings nobody else changes.
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let Some(reader) = Reader::any() else { return };
    let page = page_bytes();
    let file = file_of_pages(64);
    let map = FileMap::new(&file, 0, 64 * page, true).expect("map");
    let count = || limits::vma_count().expect("count");
    map.trap(&reader.uffd, 0..page).expect("trap");
    map.untrap(&reader.uffd, 0..page).expect("untrap");
    let before = count();
    for n in 10..50 {
        map.trap(&reader.uffd, n * page..(n + 1) * page).expect("trap");
    }
    assert!(count() <= before + 3, "{before} -> {}", count());
    for n in (10..50).rev() {
        map.untrap(&reader.uffd, n * page..(n + 1) * page).expect("untrap");
    }
    assert!(count() <= before + 1, "{before} -> {}", count());
}

#[test]
fn locked_memory_still_traps() {
    if let Some(output) = child::again("limits::locked_memory_still_traps") {
        return child::passed(&output);
    }
    let Some(reader) = Reader::any() else { return };
    // SAFETY: locks memory, changes nothing else.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
        return println!("skipped: {}", std::io::Error::last_os_error());
    }
    let page = page_bytes();
    let file = file_of_pages(4);
    let map = FileMap::new(&file, 0, 4 * page, true).expect("map");
    map.trap(&reader.uffd, page..3 * page).expect("trap");
    thread::scope(|scope| {
        let toucher = scope.spawn(|| map.load::<u8>(page).expect("load"));
        reader.fault();
        map.untrap(&reader.uffd, page..3 * page).expect("untrap");
        assert_eq!(toucher.join().expect("toucher"), 2, "not zero");
    });
}

fn status(name: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

/// Each trap used to fill its whole length with zeros first, and the anchor was locked as well.
#[test]
fn under_mlockall_nothing_is_filled_or_locked_twice() {
    const NAME: &str = "limits::under_mlockall_nothing_is_filled_or_locked_twice";
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let Some(reader) = Reader::any() else { return };
    // Much more than an allocator reserves for a thread, which is locked as well.
    const BYTES: usize = 256 << 20;
    let file = file_of_pages(1);
    file.set_len(BYTES as u64).expect("extend");
    // SAFETY: locks memory, changes nothing else.
    if unsafe { libc::mlockall(libc::MCL_FUTURE) } != 0 {
        return println!("skipped: {}", std::io::Error::last_os_error());
    }
    let locked = status("VmLck:");
    let map = FileMap::new(&file, 0, BYTES, true).expect("map");
    let locked = status("VmLck:") - locked;
    assert!((BYTES..BYTES / 2 * 3).contains(&locked), "{locked} bytes locked for the map");
    map.trap(&reader.uffd, 0..BYTES).expect("trap");
    let (most, now) = (status("VmHWM:"), status("VmRSS:"));
    assert!(most < now + BYTES / 2 * 3, "{most} bytes at most, {now} now");
    map.untrap(&reader.uffd, 0..BYTES).expect("untrap");
    assert_eq!(map.load::<u8>(0).expect("load"), 1);
}

/// The placeholder needs as much address space as the range, on top of it.
#[test]
fn little_address_space_makes_a_range_go_in_pieces() {
    const NAME: &str = "limits::little_address_space_makes_a_range_go_in_pieces";
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let Some(reader) = Reader::any() else { return };
    const BYTES: usize = 256 << 20;
    let page = page_bytes();
    let file = file_of_pages(3);
    file.set_len(BYTES as u64).expect("extend");
    let map = FileMap::new(&file, 0, BYTES, true).expect("map");
    let limit = |spare: usize| {
        let limit = (status("VmSize:") + spare) as u64;
        let limit = rustix::process::Rlimit { current: Some(limit), maximum: None };
        rustix::process::setrlimit(rustix::process::Resource::As, limit).expect("setrlimit");
    };
    limit(20 << 20);
    map.trap(&reader.uffd, page..BYTES).expect("trap");
    assert!(
        !map.is_away(0) && map.is_away(page) && map.is_away(BYTES / 2) && map.is_away(BYTES - 1)
    );
    thread::scope(|scope| {
        let toucher = scope.spawn(|| map.load::<u8>(2 * page).expect("load"));
        reader.fault();
        map.untrap(&reader.uffd, 0..BYTES).expect("untrap");
        assert_eq!(toucher.join().expect("toucher"), 3);
    });
    // Not even a page.
    limit(0);
    let refused = map.trap(&reader.uffd, 0..BYTES);
    assert!(matches!(refused, Err(MapError::Os { call: "mmap", .. })), "{refused:?}");
    assert_eq!(map.load::<u8>(2 * page).expect("load"), 3);
}

/// Mappings of no use, as many as there may be.
struct Filler {
    start: *mut u8,
    used: usize,
}

impl Filler {
    fn fill(limit: usize) -> Filler {
        let (none, flags) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let bytes = 2 * limit * page_bytes();
        // SAFETY: a fresh mapping at a place of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, none, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let mut filler = Filler { start: start.cast(), used: 0 };
        while filler.protect(filler.used, libc::PROT_READ) {
            filler.used += 1;
        }
        filler
    }

    fn protect(&self, slot: usize, how: libc::c_int) -> bool {
        let at = self.start.wrapping_add(2 * slot * page_bytes());
        // SAFETY: one page of the filler, which nothing uses.
        unsafe { libc::mprotect(at.cast(), page_bytes(), how) == 0 }
    }

    /// Takes what two at a time could not.
    fn to_the_last(&self) -> Vec<*mut libc::c_void> {
        let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let mut taken = Vec::with_capacity(16);
        loop {
            let null = std::ptr::null_mut();
            // SAFETY: a fresh mapping at a place of the kernel's choice. Shared ones do not merge.
            let at = unsafe { libc::mmap(null, page_bytes(), prot, flags, -1, 0) };
            if at == libc::MAP_FAILED {
                return taken;
            }
            taken.push(at);
        }
    }

    fn give_back(&mut self, slots: usize) {
        for _ in 0..slots {
            self.used -= 1;
            assert!(self.protect(self.used, libc::PROT_NONE));
        }
    }
}

/// Whoever waits for a part that did come home used to wait for ever.
#[test]
fn an_untrap_that_fails_half_way_wakes_those_whose_part_is_home() {
    const NAME: &str = "limits::an_untrap_that_fails_half_way_wakes_those_whose_part_is_home";
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let _bounded = Watchdog::watch("a waiter of what has come home");
    let Some(reader) = Reader::any() else { return };
    let page = page_bytes();
    let limit = limits::max_map_count().expect("limit") as usize;
    if limit > 300_000 {
        return println!("skipped: vm.max_map_count is {limit}");
    }
    let Ok(tracker) = StoreTracker::open().map(Arc::new) else { return };
    let file = file_of_pages(64);
    // Tracked, so that what comes home does not merge with its neighbours and give room.
    let map = FileMap::tracked(&file, 0, 64 * page, true, &tracker).expect("map");
    map.scan_stores(0..64 * page).expect("scan");
    // The end of the first comes home as long as the limit is not passed, and passes it.
    map.trap(&reader.uffd, 5 * page..11 * page).expect("trap");
    map.trap(&reader.uffd, 20 * page..60 * page).expect("trap");
    thread::scope(|scope| {
        let toucher = scope.spawn(|| map.load::<u8>(10 * page).expect("load"));
        reader.fault();
        let mut filler = Filler::fill(limit);
        let mut singles = filler.to_the_last();
        let untrap = || map.untrap(&reader.uffd, 10 * page..40 * page);
        let mut result = untrap();
        while map.is_away(10 * page) {
            let single = singles.pop().expect("enough room for one page");
            // SAFETY: one page that nothing uses.
            assert_eq!(unsafe { libc::munmap(single, page) }, 0);
            result = untrap();
        }
        assert!(matches!(result, Err(MapError::OutOfVmas { .. })), "{result:?}");
        assert!(map.is_away(20 * page));
        assert_eq!(toucher.join().expect("toucher"), 11);
        filler.give_back(16);
        map.untrap(&reader.uffd, 0..64 * page).expect("untrap");
    });
}

/// Fills the process's mappings up and gives room back two at a time: at each step a trap must
/// work, or fail and leave every byte where it was; what is away on its own must come home, and a
/// part of a larger stretch must come home or stay away, nothing else.
#[test]
fn out_of_mappings_is_an_error_that_changes_nothing() {
    if let Some(output) = child::again("limits::out_of_mappings_is_an_error_that_changes_nothing") {
        return child::passed(&output);
    }
    let Some(reader) = Reader::any() else { return };
    let page = page_bytes();
    let limit = limits::max_map_count().expect("limit") as usize;
    if limit > 300_000 {
        return println!("skipped: vm.max_map_count is {limit}");
    }
    let file = file_of_pages(64);
    let map = FileMap::new(&file, 0, 64 * page, true).expect("map");
    for n in (20..36).step_by(2) {
        map.trap(&reader.uffd, n * page..(n + 1) * page).expect("trap");
    }
    map.trap(&reader.uffd, 40 * page..60 * page).expect("trap");

    let mut filler = Filler::fill(limit);
    let (mut failed, mut went, mut stuck) = (0, 0, 0);
    for step in 0..8 {
        let at = (2 + 2 * step) * page;
        match map.trap(&reader.uffd, at..at + page) {
            Ok(()) => {
                went += 1;
                map.untrap(&reader.uffd, at..at + page).expect("home again");
            }
            Err(MapError::OutOfVmas { max_map_count }) => {
                failed += 1;
                assert_eq!(max_map_count as usize, limit);
            }
            Err(e) => panic!("{e:?}"),
        }
        let inside = (41 + 2 * step) * page;
        match map.untrap(&reader.uffd, inside..inside + page) {
            Ok(()) => assert!(!map.is_away(inside)),
            Err(MapError::OutOfVmas { .. }) => {
                stuck += 1;
                assert!(map.is_away(inside));
            }
            Err(e) => panic!("{e:?}"),
        }
        let alone = (20 + 2 * step) * page;
        map.untrap(&reader.uffd, alone..alone + page).expect("what is away alone comes home");
        for n in (0..64).filter(|n| !map.is_away(n * page)) {
            assert_eq!(map.load::<u8>(n * page).expect("load") as usize, n + 1);
        }
        filler.give_back(2);
    }
    println!("{failed} failed, {went} went, {stuck} stayed away");
    assert!(failed > 0 && went > 0 && stuck > 0);
    map.untrap(&reader.uffd, 0..64 * page).expect("untrap");
    for n in 0..64 {
        assert_eq!(map.load::<u8>(n * page).expect("load") as usize, n + 1);
    }
}

#[test]
fn as_many_files_may_be_opened_as_the_hard_limit_says() {
    const NAME: &str = "limits::as_many_files_may_be_opened_as_the_hard_limit_says";
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let files = rustix::process::Resource::Nofile;
    let limit = rustix::process::Rlimit { current: Some(20), maximum: Some(200) };
    rustix::process::setrlimit(files, limit).expect("setrlimit");
    let open = || std::fs::File::open("/dev/null");
    let few: Vec<_> = std::iter::from_fn(|| open().ok()).collect();
    assert!(few.len() < 20);
    assert_eq!(limits::raise_descriptor_limit().expect("raise"), 200);
    let many: Vec<_> = std::iter::from_fn(|| open().ok()).collect();
    assert!(few.len() + many.len() > 150, "{} and {}", few.len(), many.len());
    drop((few, many));
    assert_eq!(limits::raise_descriptor_limit().expect("again"), 200);
}
