//! Taking ranges away and bringing them home.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pageferry_linux::{
    AccessError, Event, FileMap, MapError, Uffd, UffdMode, Wakeup, current_tid, page_bytes,
};

use crate::file_of_pages;
use crate::reader::Reader;

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
