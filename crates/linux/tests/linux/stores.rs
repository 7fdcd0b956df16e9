//! Which pages count as stored to: the table at the head of `map/stores.rs`, line by line.

use std::ops::Range;
use std::sync::Arc;

use pageferry_linux::{FileMap, HostFile, StoreTracker, StoredPages, page_bytes};

use crate::reader::Reader;
use crate::{file_of_pages, page_out, unsupported};

const PAGES: usize = 16;

struct Tracked {
    map: FileMap,
    file: Arc<HostFile>,
}

impl Tracked {
    fn new(file: Arc<HostFile>) -> Option<Tracked> {
        let tracker = match StoreTracker::open() {
            Ok(tracker) => Arc::new(tracker),
            Err(e) => {
                println!("skipped: {e}");
                return None;
            }
        };
        let len = PAGES * page_bytes();
        let map = FileMap::tracked(&file, 0, len, true, &tracker).expect("map");
        Some(Tracked { map, file })
    }

    /// On the temporary directory's file system, and in memory.
    fn both() -> Vec<Tracked> {
        let memory = rustix::fs::memfd_create("stores", rustix::fs::MemfdFlags::CLOEXEC);
        let memory = memory.expect("memfd");
        let memory = HostFile::from_fd(std::os::fd::AsFd::as_fd(&memory)).expect("open");
        memory.write_at(&vec![1; PAGES * page_bytes()], 0).expect("fill");
        [file_of_pages(PAGES), Arc::new(memory)].into_iter().filter_map(Tracked::new).collect()
    }

    /// Page numbers found by a scan of the given pages.
    fn scan_of(&self, pages: Range<usize>) -> Vec<usize> {
        let page = page_bytes();
        match self.map.scan_stores(pages.start * page..pages.end * page).expect("scan") {
            StoredPages::Known(found) => {
                found.into_iter().flat_map(|r| r.start / page..r.end / page).collect()
            }
            StoredPages::Unknown => panic!("tracked, and still unknown"),
        }
    }

    fn scan(&self) -> Vec<usize> {
        self.scan_of(0..PAGES)
    }

    fn store(&self, page: usize) {
        self.map.store(page * page_bytes() + 8, 3_u64).expect("store");
    }

    fn load(&self, page: usize) {
        self.map.load::<u64>(page * page_bytes()).expect("load");
    }

    fn page_out(&self) {
        self.file.sync(false).expect("fsync");
        page_out(&self.map);
    }
}

#[test]
fn everything_counts_as_stored_to_until_the_first_scan() {
    for t in Tracked::both() {
        t.load(3);
        assert_eq!(t.scan_of(0..4), [0, 1, 2, 3]);
        assert_eq!(t.scan(), (4..PAGES).collect::<Vec<_>>());
        assert_eq!(t.scan(), []);
    }
}

#[test]
fn stores_are_found_by_the_page_and_once() {
    for t in Tracked::both() {
        t.scan();
        t.load(2);
        t.store(5);
        t.store(6);
        t.store(9);
        assert_eq!(t.scan_of(9..10), [9], "a part can be scanned on its own");
        assert_eq!(t.scan(), [5, 6]);
        assert_eq!(t.scan(), []);
        t.store(5);
        assert_eq!(t.scan(), [5]);
    }
}

#[test]
fn stores_made_by_the_kernel_for_us_are_found() {
    for t in Tracked::both() {
        t.scan();
        let (from, page) = (file_of_pages(1), page_bytes());
        let into = t.map.as_ptr().wrapping_add(3 * page);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&*from));
        // SAFETY: the kernel writes a few bytes into the map, which is mapped.
        assert_eq!(unsafe { libc::pread(fd, into.cast(), 10, 0) }, 10);
        t.map.copy_in(7 * page - 1, &[1, 2]).expect("copy");
        assert_eq!(t.scan(), [3, 6, 7]);
    }
}

#[test]
fn marks_outlive_their_pages() {
    for t in Tracked::both() {
        t.scan();
        t.page_out();
        t.load(4);
        t.page_out();
        assert_eq!(t.scan(), [], "reclaim alone is not a store");
        t.store(4);
        t.page_out();
        t.load(4);
        assert_eq!(t.scan(), [4]);
        t.store(5);
        let page = page_bytes() as u64;
        match t.file.punch_hole(5 * page..6 * page) {
            Err(e) if unsupported(&e) => println!("skipped: {e}"),
            result => {
                result.expect("punch");
                assert_eq!(t.scan(), [5]);
            }
        }
        t.store(12);
        t.file.set_len(10 * page).expect("cut");
        t.file.set_len(PAGES as u64 * page).expect("extend");
        assert_eq!(t.scan(), [12]);
    }
}

#[test]
fn changes_past_the_map_are_not_found() {
    for t in Tracked::both() {
        t.scan();
        let page = page_bytes() as u64;
        t.file.write_at(&[9; 100], 3 * page).expect("write");
        t.file.set_len(8 * page).expect("cut");
        t.file.set_len(PAGES as u64 * page).expect("extend");
        assert_eq!(t.scan(), []);
    }
}

#[test]
fn what_comes_home_counts_as_stored_to_once() {
    let Some(reader) = Reader::any() else { return };
    for t in Tracked::both() {
        let page = page_bytes();
        t.scan();
        t.map.trap(&reader.uffd, 4 * page..8 * page).expect("trap");
        t.store(2);
        assert_eq!(t.scan(), [2], "nothing can be stored to what is away");
        t.map.untrap(&reader.uffd, 5 * page..7 * page).expect("untrap");
        t.store(6);
        assert_eq!(t.scan(), [5, 6]);
        assert_eq!(t.scan(), []);
        t.map.untrap(&reader.uffd, 0..16 * page).expect("untrap");
        assert_eq!(t.scan_of(0..5), [4]);
        t.store(5);
        assert_eq!(t.scan(), [5, 7]);
        assert_eq!(t.scan(), []);
    }
}

#[test]
fn maps_without_a_tracker_know_nothing_and_read_only_maps_everything() {
    let page = page_bytes();
    let file = file_of_pages(2);
    let map = FileMap::new(&file, 0, 2 * page, true).expect("map");
    assert_eq!(map.scan_stores(0..page).expect("scan"), StoredPages::Unknown);
    let Ok(tracker) = StoreTracker::open().map(Arc::new) else { return };
    let map = FileMap::tracked(&file, 0, 2 * page, false, &tracker).expect("map");
    assert_eq!(map.scan_stores(0..page).expect("scan"), StoredPages::Known(vec![]));
}

#[test]
fn a_large_map_is_scanned_in_several_calls() {
    let page = page_bytes();
    const MANY: usize = 4096;
    let file = file_of_pages(1);
    file.set_len((MANY * page) as u64).expect("extend");
    let Ok(tracker) = StoreTracker::open().map(Arc::new) else { return };
    let map = FileMap::tracked(&file, 0, MANY * page, true, &tracker).expect("map");
    let whole = map.scan_stores(0..MANY * page).expect("scan");
    assert_eq!(whole, StoredPages::Known(vec![(0..MANY * page)]));
    // More separate pages than one call reports.
    let every_other = (0..MANY).step_by(2).map(|n| n * page..(n + 1) * page);
    for range in every_other.clone() {
        map.store(range.start, 1_u8).expect("store");
    }
    let found = map.scan_stores(0..MANY * page).expect("scan");
    assert_eq!(found, StoredPages::Known(every_other.collect()));
}
