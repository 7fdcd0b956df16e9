//! Mapping, copying, single accesses.

use std::fs;
use std::sync::Arc;

use pageferry_linux::{AccessError, FileMap, HostFile, MapError, page_bytes};

use crate::file_of_pages;

#[test]
fn impossible_mappings_are_typed_errors() {
    let file = file_of_pages(1);
    let page = page_bytes();
    let map = |offset, len| FileMap::new(&file, offset, len, true).expect_err("refused");
    assert!(matches!(map(0, 0), MapError::Empty));
    assert!(matches!(map(1, page), MapError::Misaligned { offset: 1, .. }));
    assert!(matches!(map(0, page + 1), MapError::Misaligned { .. }));
    let last = i64::MAX.unsigned_abs() + 1 - page as u64;
    assert!(matches!(map(last, page), MapError::TooLarge { .. }));
    assert!(matches!(map(0, usize::MAX - page + 1), MapError::TooLarge { .. }));
    assert!(matches!(map(0, 1 << 60), MapError::Os { call: "mmap", .. }));

    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("file");
    fs::write(&path, [1]).expect("write");
    let reading = Arc::new(HostFile::open(&path, false).expect("open"));
    assert!(matches!(FileMap::new(&reading, 0, page, true), Err(MapError::ReadOnlyFile)));
    let map = FileMap::new(&reading, 0, page, false).expect("map");
    assert!(matches!(map.store(0, 1_u8), Err(AccessError::ReadOnly)));
    assert!(matches!(map.copy_in(0, &[1]), Err(AccessError::ReadOnly)));
    assert_eq!(map.load::<u8>(0).expect("load"), 1);
}

#[test]
fn accesses_reach_the_file_at_the_maps_offset() {
    let page = page_bytes();
    let file = file_of_pages(4);
    let map = FileMap::new(&file, page as u64, 2 * page, true).expect("map");
    assert_eq!((map.len(), map.file_offset()), (2 * page, page as u64));
    assert_eq!(map.load::<u8>(0).expect("load"), 2);
    map.store(8, 0x1122_3344_5566_7788_u64).expect("store");
    map.store(page, 0x99aa_u16).expect("store");
    let mut bytes = [0; 8];
    file.read_at(&mut bytes, page as u64 + 8).expect("read");
    assert_eq!(u64::from_ne_bytes(bytes), 0x1122_3344_5566_7788);
    assert_eq!(map.load::<u16>(page).expect("load"), 0x99aa);
    file.write_at(&[5; 4], 2 * page as u64 + 4).expect("write");
    assert_eq!(map.load::<u32>(page + 4).expect("load"), 0x0505_0505);

    assert!(matches!(map.load::<u32>(2), Err(AccessError::Misaligned { at: 2, size: 4 })));
    assert!(matches!(map.load::<u64>(2 * page), Err(AccessError::OutOfRange { .. })));
    assert!(matches!(map.store(usize::MAX, 1_u8), Err(AccessError::OutOfRange { .. })));
    let base = map.as_ptr().addr();
    assert_eq!(map.offset_of(base + 5), Some(5));
    assert_eq!(map.offset_of(base + 2 * page), None);
    assert_eq!(map.offset_of(base.wrapping_sub(1)), None);
}

#[test]
fn copies_stop_at_the_end_of_the_file_without_a_signal() {
    let page = page_bytes();
    let file = file_of_pages(4);
    let map = FileMap::new(&file, 0, 8 * page, true).expect("map");
    let mut bytes = vec![0; 3 * page];
    map.copy_out(page / 2, &mut bytes).expect("copy");
    assert_eq!((bytes[0], bytes[page], bytes[3 * page - 1]), (1, 2, 4));
    map.copy_in(page + 1, b"hello").expect("copy");
    let mut seen = [0; 5];
    file.read_at(&mut seen, page as u64 + 1).expect("read");
    assert_eq!(&seen, b"hello");
    map.copy_out(8 * page, &mut []).expect("nothing");

    file.set_len(2 * page as u64 + 100).expect("cut");
    let end = 2 * page as u64 + 100;
    // The rest of the last page is there; whole pages beyond are not.
    map.copy_out(2 * page, &mut bytes[..page]).expect("the last page");
    match map.copy_out(page, &mut bytes) {
        Err(AccessError::PastEof { done, offset, size }) => {
            assert_eq!((done, offset, size), (2 * page, 3 * page as u64, end));
        }
        other => panic!("{other:?}"),
    }
    let beyond = map.copy_in(3 * page, &[1]);
    assert!(matches!(beyond, Err(AccessError::PastEof { done: 0, .. })), "{beyond:?}");
    assert_eq!(file.observe().expect("stat").size, end, "a store never extends");
    let outside = map.copy_in(8 * page - 1, &[1, 2]);
    assert!(matches!(outside, Err(AccessError::OutOfRange { .. })), "{outside:?}");
}
