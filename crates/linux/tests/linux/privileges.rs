//! What an ordinary user has.

use std::thread;

use pageferry_linux::{FileMap, StoreTracker, StoredPages, Uffd, UffdError, UffdMode, page_bytes};

use crate::reader::Reader;
use crate::{child, file_of_pages};

#[test]
fn an_ordinary_user_traps_and_tracks_its_own_accesses() {
    const NAME: &str = "privileges::an_ordinary_user_traps_and_tracks_its_own_accesses";
    match child::again_as_nobody(NAME) {
        Ok(Some(output)) => return child::passed(&output),
        Ok(None) => {}
        Err(why) => return println!("skipped: {why}"),
    }
    match Uffd::open_mode(UffdMode::KernelAndUser) {
        Ok(_) => println!("skipped: this system lets everybody catch the kernel's accesses"),
        Err(refused @ UffdError::Refused { .. }) => {
            let text = refused.to_string();
            assert!(text.contains("/dev/userfaultfd"), "{text}");
            assert!(text.contains("vm.unprivileged_userfaultfd"), "{text}");
        }
        Err(e) => panic!("{e:?}"),
    }
    let Some(reader) = Reader::any() else { return };
    assert!(reader.uffd.tells_thread() || !reader.uffd.can_poison());
    let page = page_bytes();
    let file = file_of_pages(2);
    let tracker = std::sync::Arc::new(StoreTracker::open().expect("tracker"));
    let map = FileMap::tracked(&file, 0, 2 * page, true, &tracker).expect("map");
    map.scan_stores(0..2 * page).expect("arm");
    map.trap(&reader.uffd, 0..page).expect("trap");
    thread::scope(|scope| {
        let toucher = scope.spawn(|| map.load::<u8>(0).expect("load"));
        reader.fault();
        map.untrap(&reader.uffd, 0..page).expect("untrap");
        assert_eq!(toucher.join().expect("toucher"), 1);
    });
    let stored = map.scan_stores(0..2 * page).expect("scan");
    assert_eq!(stored, StoredPages::Known(vec![(0..page)]));
}

/// `doctor` used to panic.
#[test]
fn without_threads_the_probe_says_so() {
    const NAME: &str = "privileges::without_threads_the_probe_says_so";
    match child::again_as_nobody(NAME) {
        Ok(Some(output)) => return child::passed(&output),
        Ok(None) => {}
        Err(why) => return println!("skipped: {why}"),
    }
    let none = rustix::process::Rlimit { current: Some(1), maximum: Some(1) };
    rustix::process::setrlimit(rustix::process::Resource::Nproc, none).expect("setrlimit");
    let found = pageferry_linux::probe();
    let trapping = found.iter().find(|c| c.name == "userfaultfd").expect("an entry");
    if Uffd::open().is_ok() {
        assert!(!trapping.ok && trapping.detail.contains("thread"), "{trapping:?}");
    }
}
