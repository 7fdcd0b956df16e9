//! What somebody else wrote, beside what we do ourselves.

use std::os::unix::fs::FileExt;

use crate::common::*;
use pageferry::PinMode;

const THEIRS: u8 = 0xEE;

/// Another description of the file, as another program would have.
fn outsider_writes(rig: &Rig, page: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(rig.path("f")).unwrap();
    file.write_all_at(&[THEIRS; 4096], page * PAGE).unwrap();
}

#[test]
fn a_write_pin_sees_it_and_does_not_undo_it() {
    let rig = rig(16);
    let file = rig.file("f", 8 * PAGE);
    let _map = file.map(0..PAGE, true).unwrap();
    device_reads(&file, 4 * PAGE..8 * PAGE);
    outsider_writes(&rig, 5);
    let pin = file.pin(5 * PAGE..6 * PAGE, PinMode::Write).unwrap();
    let mut seen = [0; 4096];
    pin.view().unwrap().read(5 * PAGE, &mut seen).unwrap();
    assert_eq!(seen, [THEIRS; 4096]);
    pin.view().unwrap().write(5 * PAGE, &[1; 8]).unwrap();
    pin.release().unwrap();
    let page = &rig.on_disk("f")[5 * 4096..6 * 4096];
    assert_eq!((&page[..8], &page[8..]), (&[1; 8][..], &[THEIRS; 4088][..]));
}

#[test]
fn pages_of_a_mapping_that_nobody_asked_about_do_not_explain_it() {
    let rig = rig(16);
    let file = rig.file("f", 64 * PAGE);
    let _map = file.map(0..64 * PAGE, true).unwrap();
    device_reads(&file, 0..PAGE);
    device_reads(&file, 0..PAGE);
    outsider_writes(&rig, 0);
    device_reads(&file, 40 * PAGE..41 * PAGE);
    assert_eq!(device_reads(&file, 0..PAGE)[100], THEIRS);
}

#[test]
fn a_later_write_of_ours_does_not_hide_it() {
    for mapped in [false, true] {
        let rig = rig(16);
        let file = rig.file("f", 64 * PAGE);
        let map = mapped.then(|| file.map(32 * PAGE..33 * PAGE, true).unwrap());
        device_reads(&file, 0..PAGE);
        outsider_writes(&rig, 0);
        file.write_at(&[1; 10], 40 * PAGE).unwrap();
        assert_eq!(device_reads(&file, 0..PAGE)[100], THEIRS, "mapped: {mapped}");
        drop(map);
    }
}

#[test]
fn after_stores_of_ours_only_their_pages_move() {
    let rig = rig(16);
    let file = rig.file("f", 64 * PAGE);
    let moved = || rig.cache.stats().get("fetched_bytes");
    device_reads(&file, 0..64 * PAGE);
    // A mapping made over copies, stored to, asked, stored to again, and ended.
    let map = file.map(0..64 * PAGE, true).unwrap();
    for turn in 0..3 {
        let before = moved();
        map.store_u64(5 * 4096, turn).unwrap();
        assert_eq!(device_reads(&file, 0..64 * PAGE)[5 * 4096..][..8], turn.to_le_bytes());
        assert_eq!(moved().unwrap() - before.unwrap(), PAGE, "turn {turn}");
    }
    let before = moved();
    map.store_u64(9 * 4096, 7).unwrap();
    map.unmap().unwrap();
    assert_eq!(device_reads(&file, 0..64 * PAGE)[9 * 4096..][..8], 7u64.to_le_bytes());
    assert_eq!(moved().unwrap() - before.unwrap(), PAGE);
}
