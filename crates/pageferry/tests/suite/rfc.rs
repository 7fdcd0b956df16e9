//! The four file tests of the RFC "Allow file-backed or shared device private pages", in their
//! sound form: buffers are poisoned, counts are checked, the file is truncated through its handle.

use crate::common::{FRAME, PAGE, Rig, device_reads, rig, same};
use pageferry::{After, File, Map, PinMode};

const BYTES: u64 = 4 << 20;

fn integers() -> Vec<u8> {
    (0..BYTES as u32 / 4).flat_map(u32::to_le_bytes).collect()
}

/// A file of integers, stored through its mapping, synced.
fn filled() -> (Rig, File, Map) {
    let r = rig(BYTES / FRAME + 2);
    std::fs::File::create(r.path("a")).unwrap().set_len(BYTES).unwrap();
    let f = r.cache.open(r.path("a")).unwrap();
    let m = f.map(0..BYTES, true).unwrap();
    for (n, word) in integers().as_chunks::<4>().0.iter().enumerate() {
        m.store_u32(4 * n, u32::from_le_bytes(*word)).unwrap();
    }
    f.sync().unwrap();
    (r, f, m)
}

#[test]
fn migrate_file() {
    let (_r, f, _m) = filled();
    same(&device_reads(&f, 0..BYTES), &integers(), "the device");
}

#[test]
fn migrate_file_fault() {
    let (_r, f, m) = filled();
    let pin = f.pin(0..BYTES, PinMode::Write).unwrap();
    pin.view().unwrap().update(0..BYTES, &mut |piece| piece[0] = piece[0].wrapping_add(0)).unwrap();
    pin.release_with(After::KeepAway).unwrap();
    let mut half = vec![0xEE; BYTES as usize / 2];
    m.read(0, &mut half).unwrap();
    same(&half, &integers()[..half.len()], "the first half through the mapping");
    same(&device_reads(&f, 0..BYTES), &integers(), "the mix of home and away");
}

#[test]
fn migrate_fault_read_buf() {
    let (_r, f, _m) = filled();
    device_reads(&f, 0..BYTES);
    let mut buf = vec![0xEE; BYTES as usize + 10];
    assert_eq!(f.read_at(&mut buf, 0).unwrap() as u64, BYTES);
    same(&buf[..BYTES as usize], &integers(), "read");
    assert_eq!(buf[BYTES as usize..], [0xEE; 10]);
}

#[test]
fn migrate_fault_write_buf() {
    let (r, f, m) = filled();
    let pin = f.pin(0..BYTES, PinMode::Write).unwrap();
    let view = pin.view().unwrap();
    r.cache
        .launch(16, |group| {
            let part = BYTES / 16;
            view.update(group * part..(group + 1) * part, &mut |piece| {
                for e in piece.as_chunks_mut::<4>().0 {
                    *e = (u32::from_le_bytes(*e) + 1).to_le_bytes();
                }
            })
        })
        .unwrap();
    drop(view);
    pin.release_with(After::KeepAway).unwrap();
    let half = BYTES / 2;
    f.set_len(half).unwrap();
    let expected: Vec<u8> = (1..=BYTES as u32 / 4).flat_map(u32::to_le_bytes).collect();
    let mut buf = vec![0xEE; BYTES as usize];
    assert_eq!(f.read_at(&mut buf, 0).unwrap() as u64, half);
    same(&buf[..half as usize], &expected[..half as usize], "read of the half");
    let mut seen = vec![0xEE; half as usize];
    m.read(0, &mut seen).unwrap();
    same(&seen, &expected[..half as usize], "the half through the mapping");
    f.set_len(BYTES).unwrap();
    m.read(0, &mut seen).unwrap();
    same(&seen, &expected[..half as usize], "the first half after growing back");
    m.read(half as usize, &mut seen).unwrap();
    same(&seen, &vec![0; half as usize], "the second half after growing back");
}

/// What went home is on storage after a sync: the page cache is dropped before it is read again.
#[test]
fn device_writes_survive_the_page_cache() {
    let r = rig(4);
    let f = r.file("a", 2 * FRAME);
    crate::common::device_writes(&f, 100, &[9; 5000], After::KeepAway);
    f.sync().unwrap();
    drop(f);
    if let Err(e) = std::fs::write("/proc/sys/vm/drop_caches", "1") {
        crate::skipped!("dropping the page cache needs root ({e}); the sync itself was made");
    }
    let mut model = crate::common::pattern(2 * FRAME);
    model[100..5100].fill(9);
    same(&r.on_disk("a"), &model, "storage");
}

#[test]
fn a_file_renamed_over_another_keeps_its_own_pages() {
    let r = rig(4);
    let old = r.file("old", FRAME);
    crate::common::device_writes(&old, 0, &[1; 100], After::KeepAway);
    std::fs::write(r.path("new"), vec![2; FRAME as usize]).unwrap();
    std::fs::rename(r.path("new"), r.path("old")).unwrap();
    let new = r.cache.open(r.path("old")).unwrap();
    assert_eq!(device_reads(&new, 0..4), [2; 4]);
    assert_eq!(device_reads(&old, 0..4), [1; 4]);
    drop(old);
    same(&r.on_disk("old"), &vec![2; FRAME as usize], "the new file");
}

/// Advice of any kind on a mapping with away pages loses nothing.
#[test]
fn advice_loses_nothing() {
    for advice in [libc::MADV_DONTNEED, libc::MADV_COLD, libc::MADV_PAGEOUT, libc::MADV_FREE] {
        let r = rig(4);
        let f = r.file("a", FRAME);
        let m = f.map(0..FRAME, true).unwrap();
        crate::common::device_writes(&f, PAGE, &[7; 4096], After::KeepAway);
        m.store_u8(5 * PAGE as usize, 3).unwrap();
        // SAFETY: the range is the mapping's own; whether the advice is taken does not matter.
        unsafe { libc::madvise(m.as_ptr().cast(), FRAME as usize, advice) };
        assert_eq!(m.load_u8(PAGE as usize + 9).unwrap(), 7, "advice {advice}");
        assert_eq!(m.load_u8(5 * PAGE as usize).unwrap(), 3, "advice {advice}");
    }
}
