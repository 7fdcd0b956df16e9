//! Taking ranges away and bringing them home.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pageferry_linux::{
    AccessError, Event, FileMap, MapError, Uffd, UffdMode, Wakeup, current_tid, limits, page_bytes,
};

use crate::reader::Reader;
use crate::{Watchdog, child, file_of_pages};

#[test]
fn a_touch_waits_until_the_page_is_home() {
    let Some(reader) = Reader::any() else { return };
    let page = page_bytes();
    let file = file_of_pages(8);
    let map = FileMap::new(&file, 0, 8 * page, true).expect("map");
    for write in [false, true] {
        map.trap(&reader.uffd, 2 * page..6 * page).expect("trap");
        assert!(map.is_away(2 * page) && map.is_away(6 * page - 1));
        assert!(!map.is_away(2 * page - 1) && !map.is_away(6 * page));
        assert_eq!(map.load::<u8>(page).expect("home"), 2);
        thread::scope(|scope| {
            let toucher = scope.spawn(|| {
                if write {
                    map.store(3 * page + 8, 0x0808_u16).expect("store");
                }
                (current_tid(), map.load::<u8>(3 * page + 8).expect("load"))
            });
            let fault = reader.fault();
            assert_eq!(map.offset_of(fault.addr & !(page - 1)), Some(3 * page));
            assert_eq!(fault.write, write);
            // Newer bytes arrive from elsewhere before the range comes home.
            file.write_at(&vec![0x40; page], 3 * page as u64).expect("write");
            map.untrap(&reader.uffd, 2 * page..6 * page).expect("untrap");
            let (tid, value) = toucher.join().expect("toucher");
            assert_eq!(value, if write { 8 } else { 0x40 });
            if reader.uffd.tells_thread() {
                assert_eq!(fault.tid, Some(tid));
            }
        });
    }
    assert!(!map.is_away(3 * page));
    // Home already: nothing to do, nothing to complain about.
    map.untrap(&reader.uffd, 0..8 * page).expect("untrap");
    assert_eq!(map.load::<u8>(7 * page).expect("load"), 8);
}

#[test]
fn a_wake_that_comes_too_early_traps_again() {
    let Some(reader) = Reader::any() else { return };
    let page = page_bytes();
    let file = file_of_pages(1);
    let map = FileMap::new(&file, 0, page, true).expect("map");
    map.trap(&reader.uffd, 0..page).expect("trap");
    thread::scope(|scope| {
        let toucher = scope.spawn(|| map.load::<u8>(0).expect("load"));
        for _ in 0..3 {
            reader.fault();
            map.wake(&reader.uffd, 0..page).expect("wake");
        }
        reader.fault();
        map.untrap(&reader.uffd, 0..page).expect("untrap");
        assert_eq!(toucher.join().expect("toucher"), 1);
    });
}

#[test]
fn system_calls_wait_where_the_kernels_accesses_are_caught() {
    let Some(reader) = Reader::start(UffdMode::KernelAndUser) else { return };
    let page = page_bytes();
    let (file, other) = (file_of_pages(2), file_of_pages(1));
    let map = FileMap::new(&file, 0, 2 * page, true).expect("map");
    map.trap(&reader.uffd, page..2 * page).expect("trap");
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            // SAFETY: the kernel reads one page of the map, which is mapped.
            unsafe { libc::pwrite(raw(&other), map.as_ptr().wrapping_add(page).cast(), page, 0) }
        });
        reader.fault();
        let copier = scope.spawn(|| {
            let mut bytes = vec![0; 2 * page];
            map.copy_out(0, &mut bytes).map(|()| (bytes[0], bytes[2 * page - 1]))
        });
        reader.fault();
        map.untrap(&reader.uffd, page..2 * page).expect("untrap");
        assert_eq!(writer.join().expect("writer"), page as isize);
        assert_eq!(copier.join().expect("copier").expect("copy"), (1, 2));
    });
    let mut byte = [0];
    other.read_at(&mut byte, 17).expect("read");
    assert_eq!(byte, [2]);
}

fn raw(file: &impl std::os::fd::AsFd) -> i32 {
    use std::os::fd::AsRawFd;
    file.as_fd().as_raw_fd()
}

#[test]
fn system_calls_fail_where_only_user_accesses_are_caught() {
    let Some(reader) = Reader::start(UffdMode::UserOnly) else { return };
    let page = page_bytes();
    let (file, other) = (file_of_pages(2), file_of_pages(1));
    let map = FileMap::new(&file, 0, 2 * page, true).expect("map");
    map.trap(&reader.uffd, page..2 * page).expect("trap");
    let mut bytes = vec![0; 2 * page];
    match map.copy_out(0, &mut bytes) {
        Err(AccessError::Away { done, at }) => assert_eq!((done, at), (page, page)),
        result => panic!("{result:?}"),
    }
    // SAFETY: the kernel reads one page of the map, which is mapped.
    let n = unsafe { libc::pwrite(raw(&other), map.as_ptr().wrapping_add(page).cast(), page, 0) };
    let error = std::io::Error::last_os_error();
    assert_eq!((n, error.raw_os_error()), (-1, Some(libc::EFAULT)));
    assert_eq!(reader.count(), 0);
    thread::scope(|scope| {
        let toucher = scope.spawn(|| map.load::<u8>(page).expect("load"));
        reader.fault();
        map.untrap(&reader.uffd, 0..2 * page).expect("untrap");
        assert_eq!(toucher.join().expect("toucher"), 2);
    });
    map.copy_out(0, &mut bytes).expect("copy");
}

#[test]
fn a_poisoned_page_fails_and_can_be_armed_again() {
    let Some(reader) = Reader::start(UffdMode::KernelAndUser) else { return };
    if !reader.uffd.can_poison() {
        return println!("skipped: no UFFDIO_POISON");
    }
    let page = page_bytes();
    let (file, other) = (file_of_pages(4), file_of_pages(1));
    let map = FileMap::new(&file, 0, 4 * page, true).expect("map");
    let home = map.poison(&reader.uffd, 0..page).expect_err("not away");
    assert!(matches!(home, MapError::Os { .. }), "{home:?}");
    map.trap(&reader.uffd, page..4 * page).expect("trap");
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            // SAFETY: the kernel reads a few bytes of the map, which is mapped.
            let n =
                unsafe { libc::pwrite(raw(&other), map.as_ptr().wrapping_add(page).cast(), 10, 0) };
            (n, std::io::Error::last_os_error().raw_os_error())
        });
        reader.fault();
        map.poison(&reader.uffd, page..2 * page).expect("poison");
        assert_eq!(writer.join().expect("writer"), (-1, Some(libc::EFAULT)));
        // Again, and together with pages that are not poisoned yet.
        map.poison(&reader.uffd, page..3 * page).expect("poison");
        let failed = map.copy_out(2 * page, &mut [0]);
        assert!(matches!(failed, Err(AccessError::Away { .. })), "{failed:?}");

        map.rearm(&reader.uffd, page..3 * page).expect("rearm");
        let toucher = scope.spawn(|| map.load::<u8>(2 * page).expect("load"));
        reader.fault();
        map.untrap(&reader.uffd, page..4 * page).expect("untrap");
        assert_eq!(toucher.join().expect("toucher"), 3);
    });
}

#[test]
fn mistakes_that_would_hang_are_errors() {
    let (Some(reader), Some(stranger)) = (Reader::any(), Reader::any()) else { return };
    let page = page_bytes();
    let file = file_of_pages(2);
    let map = FileMap::new(&file, 0, 2 * page, true).expect("map");
    map.trap(&reader.uffd, 0..page).expect("trap");
    let other = map.trap(&stranger.uffd, page..2 * page);
    assert!(matches!(other, Err(MapError::OtherUffd)), "{other:?}");
    let nothing = map.trap(&reader.uffd, page..page);
    assert!(matches!(nothing, Err(MapError::OutOfRange { .. })), "{nothing:?}");

    let uffd = Arc::new(Uffd::open().expect("uffd"));
    let mut events = Vec::new();
    let waited = uffd.wait(&mut events, Some(Duration::ZERO)).expect("wait");
    assert_eq!(waited, Wakeup::TimedOut);
    let map = FileMap::new(&file, 0, 2 * page, true).expect("map");
    let own = map.trap(&uffd, 0..page);
    assert!(matches!(own, Err(MapError::CalledByReader)), "{own:?}");
    assert_eq!(map.load::<u8>(0).expect("load"), 1, "nothing has changed");
}

#[test]
fn the_reader_hands_over_what_there_is_before_it_stops() {
    let uffd = match Uffd::open() {
        Ok(uffd) => Arc::new(uffd),
        Err(e) => return println!("skipped: {e}"),
    };
    let page = page_bytes();
    let file = file_of_pages(1);
    let map = FileMap::new(&file, 0, page, true).expect("map");
    thread::scope(|scope| {
        let mover = scope.spawn(|| map.trap(&uffd, 0..page));
        let mut events = Vec::new();
        assert_eq!(uffd.wait(&mut events, None).expect("wait"), Wakeup::Events);
        let to = map.as_ptr().addr();
        let moved =
            matches!(&events[..], [Event::Remap { to: t, len, .. }] if *t == to && *len == page);
        assert!(moved, "{events:?}");
        mover.join().expect("mover").expect("trap");
        uffd.stop().expect("stop");
        uffd.stop().expect("twice is fine");
        assert_eq!(uffd.wait(&mut events, None).expect("wait"), Wakeup::Stopped);
        assert_eq!(uffd.wait(&mut events, None).expect("wait"), Wakeup::Stopped);
        assert!(events.is_empty());
    });
}

/// Any thread that has read may be the one that the others' moves wait for next.
#[test]
fn every_thread_that_reads_is_kept_from_moving() {
    let uffd = match Uffd::open() {
        Ok(uffd) => Arc::new(uffd),
        Err(e) => return println!("skipped: {e}"),
    };
    let page = page_bytes();
    let file = file_of_pages(1);
    let map = FileMap::new(&file, 0, page, true).expect("map");
    let wait = || uffd.wait(&mut Vec::new(), Some(Duration::ZERO)).expect("wait");
    assert_eq!(wait(), Wakeup::TimedOut);
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(wait(), Wakeup::TimedOut)).join().expect("another reader");
    });
    let own = map.trap(&uffd, 0..page);
    assert!(matches!(own, Err(MapError::CalledByReader)), "{own:?}");
}

/// `poll` refuses once the limit of open files is below the number of descriptors it is given; the
/// reader used to end for that, and everybody who waited, waited for ever.
#[test]
fn a_low_limit_of_open_files_does_not_stop_the_reader() {
    const NAME: &str = "traps::a_low_limit_of_open_files_does_not_stop_the_reader";
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
    const NAME: &str = "traps::neighbours_that_are_away_merge_and_what_comes_home_too";
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
    if let Some(output) = child::again("traps::locked_memory_still_traps") {
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

/// Fills the process's mappings up and gives room back two at a time: at each step a trap must
/// work, or fail and leave every byte where it was; what is away on its own must come home, and a
/// part of a larger stretch must come home or stay away, nothing else.
#[test]
fn out_of_mappings_is_an_error_that_changes_nothing() {
    if let Some(output) = child::again("traps::out_of_mappings_is_an_error_that_changes_nothing") {
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
    assert_eq!(map.away_around(50 * page), Some(40 * page..60 * page));
    assert_eq!(map.away_around(39 * page), None);

    let (none, flags) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let bytes = 2 * limit * page;
    // SAFETY: a fresh mapping at a place of the kernel's choice.
    let filler = unsafe { libc::mmap(std::ptr::null_mut(), bytes, none, flags, -1, 0) };
    assert_ne!(filler, libc::MAP_FAILED);
    let protect = |slot: usize, how| {
        let at = filler.cast::<u8>().wrapping_add(2 * slot * page);
        // SAFETY: one page of the filler, which nothing uses.
        unsafe { libc::mprotect(at.cast(), page, how) == 0 }
    };
    let mut used = (0..limit).take_while(|&slot| protect(slot, libc::PROT_READ)).count();

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
        for _ in 0..2 {
            used -= 1;
            assert!(protect(used, libc::PROT_NONE));
        }
    }
    println!("{failed} failed, {went} went, {stuck} stayed away");
    assert!(failed > 0 && went > 0 && stuck > 0);
    map.untrap(&reader.uffd, 0..64 * page).expect("untrap");
    for n in 0..64 {
        assert_eq!(map.load::<u8>(n * page).expect("load") as usize, n + 1);
    }
}
