//! The file changes: through the cache, and behind its back.

use crate::common::{FRAME, PAGE, device_reads, device_writes, pattern, rig, rig_with, same};
use pageferry::{After, CacheConfig, Error, File, PageState, PinMode};

#[test]
fn writes_through_the_cache_reach_the_next_pin_and_only_they_move() {
    let r = rig(8);
    let f = r.file("a", 2 * FRAME);
    device_reads(&f, 0..2 * FRAME);
    let before = r.stat("fetched_bytes");
    f.write_at(&[7; 100], PAGE - 50).unwrap();
    let mut model = pattern(2 * FRAME);
    model[PAGE as usize - 50..PAGE as usize + 50].fill(7);
    same(&device_reads(&f, 0..2 * FRAME), &model, "the device");
    assert_eq!(r.stat("fetched_bytes") - before, 2 * PAGE);
}

#[test]
fn writes_behind_our_back_reach_the_next_pin() {
    use std::os::unix::fs::FileExt;
    let r = rig(8);
    let f = r.file("a", FRAME);
    let other = std::fs::OpenOptions::new().write(true).open(r.path("a")).unwrap();
    for round in 0..50u8 {
        device_reads(&f, 0..FRAME);
        other.write_all_at(&[round], 77).unwrap();
        assert_eq!(device_reads(&f, 77..78), [round]);
    }
}

#[test]
fn a_write_over_away_bytes_keeps_the_rest_of_the_page() {
    let r = rig(8);
    let f = r.file("a", 2 * PAGE);
    device_writes(&f, 0, &[1; 5000], After::KeepAway);
    f.write_at(&[2; 10], 100).unwrap();
    let mut model = pattern(2 * PAGE);
    model[..5000].fill(1);
    model[100..110].fill(2);
    same(&r.on_disk("a")[..PAGE as usize], &model[..PAGE as usize], "the page written to");
    same(&device_reads(&f, 0..2 * PAGE), &model, "the device");
    f.flush(0..u64::MAX).unwrap();
    same(&r.on_disk("a"), &model, "the file");
}

#[test]
fn truncation_cuts_pins_and_what_grows_back_is_zero() {
    let r = rig(8);
    let f = r.file("a", 2 * FRAME);
    let pin = f.pin(0..2 * FRAME, PinMode::Write).unwrap();
    let view = pin.view().unwrap();
    view.write(FRAME - 10, &[9; 20]).unwrap();
    view.write(FRAME + 100, &[9; 20]).unwrap();
    f.set_len(FRAME + 5).unwrap();
    let gone = view.write(FRAME + PAGE, b"x").unwrap_err();
    assert_eq!((gone.kind(), gone.errno()), ("past-eof", 14));
    drop(view);
    let released = pin.release().unwrap_err();
    let Error::FileShrunk { file_bytes, lost_bytes, .. } = released else { panic!("{released}") };
    assert_eq!((file_bytes, lost_bytes), (FRAME + 5, PAGE - 5));
    let mut model = pattern(2 * FRAME)[..FRAME as usize + 5].to_vec();
    model[FRAME as usize - 10..].fill(9);
    same(&r.on_disk("a"), &model, "what lay before the cut is kept, nothing else");
    f.set_len(2 * FRAME).unwrap();
    model.resize(2 * FRAME as usize, 0);
    same(&device_reads(&f, 0..2 * FRAME), &model, "the device");
    same(&r.on_disk("a"), &model, "the file");
}

#[test]
fn truncation_frees_the_device_and_forgets_away_bytes() {
    let r = rig(8);
    let f = r.file("a", 4 * FRAME);
    device_writes(&f, 0, &vec![6; 4 * FRAME as usize], After::KeepAway);
    assert_eq!(r.stat("used_bytes"), 4 * FRAME);
    f.set_len(FRAME + 1).unwrap();
    assert_eq!(r.stat("used_bytes"), 2 * FRAME);
    assert_eq!(r.stat("away_bytes"), FRAME + 1);
    f.set_len(0).unwrap();
    assert_eq!((r.stat("used_bytes"), r.stat("away_bytes")), (0, 0));
    f.sync().unwrap();
    same(&r.on_disk("a"), &[], "the file");
}

#[test]
fn the_device_cannot_extend_the_file() {
    let r = rig(8);
    let f = r.file("a", PAGE + 100);
    device_writes(&f, PAGE, &[3; 4096], After::WriteBack);
    let mut model = pattern(PAGE + 100);
    model[PAGE as usize..].fill(3);
    same(&r.on_disk("a"), &model, "the file");
    // Nor do its stores past the end show when the file grows, by whatever way.
    device_writes(&f, PAGE, &[4; 4096], After::KeepAway);
    f.set_len(2 * PAGE).unwrap();
    model[PAGE as usize..].fill(4);
    model.resize(2 * PAGE as usize, 0);
    same(&device_reads(&f, 0..2 * PAGE), &model, "the device");
    same(&r.on_disk("a"), &model, "the file");
}

#[test]
fn appending_to_an_away_last_page_keeps_both() {
    let r = rig(8);
    let f = r.file("a", 100);
    device_writes(&f, 0, &[5; 100], After::KeepAway);
    f.write_at(b"tail", 100).unwrap();
    let mut model = vec![5; 100];
    model.extend(b"tail");
    same(&r.on_disk("a"), &model, "file");
    same(&device_reads(&f, 0..104), &model, "device");
}

#[test]
fn holes_zeroes_and_shifts_equal_a_plain_twin() {
    let r = rig(16);
    let f = r.file("a", 4 * FRAME);
    let twin = pageferry_linux::HostFile::open(
        {
            std::fs::write(r.path("twin"), pattern(4 * FRAME)).unwrap();
            r.path("twin")
        },
        true,
    )
    .unwrap();
    let mut supported = true;
    let mut step = |what: &str, ours: pageferry::Result<()>, theirs: std::io::Result<()>| {
        if let (Err(o), Err(t)) = (&ours, &theirs) {
            crate::skipped!("{what} is not supported by this file system ({o}; {t})");
            supported = false;
            return;
        }
        ours.unwrap();
        theirs.unwrap();
        f.flush(0..u64::MAX).unwrap();
        same(&r.on_disk("a"), &r.on_disk("twin"), what);
        let len = f.len().unwrap();
        same(&device_reads(&f, 0..len), &r.on_disk("twin"), "the device");
    };
    let away = |at: u64| {
        device_writes(&f, at, &[at as u8 | 1; 9000], After::KeepAway);
        twin.write_at(&[at as u8 | 1; 9000], at).unwrap();
    };
    away(5000);
    step("punch", f.punch_hole(6000..FRAME), twin.punch_hole(6000..FRAME));
    away(FRAME);
    step(
        "zero",
        f.zero_range(FRAME + 9..FRAME + 9000, false),
        twin.zero_range(FRAME + 9..FRAME + 9000, false),
    );
    away(3 * FRAME);
    step("collapse", f.collapse_range(PAGE..3 * PAGE), twin.collapse_range(PAGE..3 * PAGE));
    away(2 * FRAME);
    step("insert", f.insert_range(PAGE..5 * PAGE), twin.insert_range(PAGE..5 * PAGE));
    away(100);
    step("allocate", f.allocate(0..5 * FRAME, false), twin.allocate(0..5 * FRAME, false));
}

#[test]
fn an_unlinked_file_works_on() {
    let r = rig(8);
    let f = r.file("a", FRAME);
    std::fs::remove_file(r.path("a")).unwrap();
    device_writes(&f, 10, &[1; 100], After::WriteBack);
    let mut buf = [0; 100];
    f.read_at(&mut buf, 10).unwrap();
    assert_eq!(buf, [1; 100]);
    f.close().unwrap();
    assert_eq!(r.stat("used_bytes"), 0);
}

/// A name is nothing to the bytes: neither a new one nor none brings them home or loses them.
#[test]
fn renaming_and_unlinking_leave_away_bytes_away() {
    let r = rig(8);
    let f = r.file("a", FRAME);
    let m = f.map(0..FRAME, true).unwrap();
    device_writes(&f, 0, &[5; 100], After::KeepAway);
    std::fs::rename(r.path("a"), r.path("b")).unwrap();
    assert_eq!(placed(&f)[0].1, PageState::Away, "after the rename");
    assert_eq!(r.on_disk("b")[..100], [5; 100], "by the new name");
    device_writes(&f, 0, &[6; 100], After::KeepAway);
    std::fs::remove_file(r.path("b")).unwrap();
    assert_eq!(placed(&f)[0].1, PageState::Away, "after the unlink");
    assert_eq!(device_reads(&f, 0..100), [6; 100], "the device");
    assert_eq!(m.load_u8(50).unwrap(), 6, "the mapping");
    let mut buf = [0; 100];
    f.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [6; 100], "the descriptor");
    m.unmap().unwrap();
    f.close().unwrap();
    assert_eq!(r.stat("used_bytes"), 0);
}

/// As after a store through a mapping: who looks at the times after the write-back sees that the file changed.
#[test]
fn times_move_no_later_than_the_write_back() {
    let r = rig(4);
    let f = r.file("a", FRAME);
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    let set_back = || {
        let other = std::fs::OpenOptions::new().write(true).open(r.path("a")).unwrap();
        other.set_modified(old).unwrap();
    };
    let modified = || r.path("a").metadata().unwrap().modified().unwrap();
    set_back();
    assert_eq!(modified(), old);
    device_writes(&f, 0, &[1; 10], After::WriteBack);
    assert!(modified() > old, "after a release");
    set_back();
    device_writes(&f, 0, &[2; 10], After::KeepAway);
    f.flush(0..u64::MAX).unwrap();
    assert!(modified() > old, "after a flush");
}

/// What the device writes after one `sync` is not taken for what that has stored.
#[test]
fn each_sync_stores_what_the_device_wrote_before_it() {
    use std::os::fd::AsRawFd;
    let r = rig(4);
    let f = r.file("a", FRAME);
    let mut model = pattern(FRAME);
    for round in 1..=3u8 {
        device_writes(&f, 100, &[round; 5000], After::KeepAway);
        model[100..5100].fill(round);
        f.sync().unwrap();
        let file = std::fs::File::open(r.path("a")).unwrap();
        // SAFETY: advice about a descriptor of ours. Pages that are stored leave memory, others stay.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        same(&r.on_disk("a"), &model, &format!("after sync {round}"));
    }
}

#[test]
fn the_same_file_opened_twice_is_one() {
    let r = rig(8);
    let f = r.file("a", FRAME);
    std::fs::hard_link(r.path("a"), r.path("b")).unwrap();
    let g = r.cache.open_read_only(r.path("b")).unwrap();
    device_writes(&f, 0, &[2; 10], After::KeepAway);
    let mut buf = [0; 10];
    g.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [2; 10]);
    drop(f);
    assert_eq!(device_reads(&g, 0..10), [2; 10]);
    assert!(matches!(g.write_at(b"x", 0), Err(Error::ReadOnly(_))));
}

#[test]
fn a_write_over_much_that_is_away_is_made_by_its_caller() {
    let config = CacheConfig::default().flush_age(None).copy_threads(4);
    let rig = rig_with(512, config);
    let bytes = 24u64 << 20;
    let file = rig.file("f", bytes);
    for turn in 1..=5u8 {
        let pin = file.pin(0..bytes, PinMode::Overwrite).unwrap();
        pin.view().unwrap().write(0, &vec![7; bytes as usize]).unwrap();
        pin.release_with(After::KeepAway).unwrap();
        file.write_at(&vec![turn; bytes as usize], 0).unwrap();
        same(&rig.on_disk("f"), &vec![turn; bytes as usize], "what was written");
    }
}

fn placed(file: &File) -> Vec<(std::ops::Range<u64>, PageState)> {
    let placed = file.placement(0..u64::MAX).unwrap();
    placed.into_iter().map(|p| (p.range, p.state)).collect()
}

#[test]
fn a_placement_tells_of_the_file_as_long_as_it_is_now() {
    let r = rig(8);
    let f = r.file("a", 4 * PAGE);
    device_reads(&f, 0..2 * PAGE);
    let copied = r.stat("fetched_bytes");
    let resize = |size: u64| {
        let size = size.to_string();
        let mut truncate = std::process::Command::new("truncate");
        assert!(truncate.args(["-s", &size]).arg(r.path("a")).status().unwrap().success());
    };
    let (home, copy) = (PageState::Home, PageState::Copy);
    assert_eq!(placed(&f), [(0..2 * PAGE, copy), (2 * PAGE..4 * PAGE, home)]);
    resize(6 * PAGE + 100);
    assert_eq!(placed(&f), [(0..2 * PAGE, copy), (2 * PAGE..6 * PAGE + 100, home)]);
    resize(PAGE + 100);
    assert_eq!(placed(&f), [(0..PAGE, copy), (PAGE..PAGE + 100, home)]);
    resize(0);
    assert_eq!(placed(&f), []);
    assert_eq!(r.stat("fetched_bytes"), copied, "nothing has moved");
    resize(PAGE);
    assert_eq!(device_reads(&f, 0..PAGE), [0; PAGE as usize]);
}

#[test]
fn a_placement_beside_a_write_pin_of_the_same_thread_waits_for_nothing() {
    let r = rig(8);
    let f = r.file("a", 4 * PAGE);
    let pin = f.pin(0..4 * PAGE, PinMode::Write).unwrap();
    pin.view().unwrap().write(0, &[7; 2 * PAGE as usize]).unwrap();
    let other = std::fs::OpenOptions::new().write(true).open(r.path("a")).unwrap();
    other.set_len(PAGE).unwrap();
    assert_eq!(placed(&f), [(0..PAGE, PageState::Away)]);
    other.set_len(4 * PAGE).unwrap();
    let home = (PAGE..4 * PAGE, PageState::Home);
    if !crate::common::connected() {
        // To a daemon, its client's stores are as if made when they are told, with the release.
        assert_eq!(placed(&f), [(0..PAGE, PageState::Away), home]);
    }
    let lost = pin.release().unwrap_err();
    assert!(matches!(lost, Error::FileShrunk { file_bytes: PAGE, lost_bytes: PAGE, .. }), "{lost}");
}

#[test]
fn what_was_stored_before_a_cut_does_not_come_back_with_the_release() {
    let r = rig(8);
    let f = r.file("a", 4 * PAGE);
    let pin = f.pin(0..4 * PAGE, PinMode::Write).unwrap();
    pin.view().unwrap().write(0, &[7; 4 * PAGE as usize]).unwrap();
    f.set_len(PAGE).unwrap();
    f.set_len(4 * PAGE).unwrap();
    f.write_at(&[8; 100], 3 * PAGE).unwrap();
    let cut = pin.release().unwrap_err();
    assert!(matches!(cut, Error::FileShrunk { file_bytes: PAGE, .. }), "{cut}");
    let mut model = vec![0; 4 * PAGE as usize];
    model[..PAGE as usize].fill(7);
    model[3 * PAGE as usize..][..100].fill(8);
    same(&r.on_disk("a"), &model, "the file");
    same(&device_reads(&f, 0..4 * PAGE), &model, "the device");
}

#[test]
fn a_pin_that_a_truncation_cut_off_makes_nobody_wait_for_its_pages() {
    let r = rig(8);
    let f = r.file("a", 4 * PAGE);
    let map = f.map(0..4 * PAGE, true).unwrap();
    let pin = f.pin(PAGE + 1000..3 * PAGE + 100, PinMode::Write).unwrap();
    let view = pin.view().unwrap();
    view.write(3 * PAGE, &[7; 100]).unwrap();
    f.set_len(PAGE + 500).unwrap();
    assert_eq!(view.write(PAGE + 2000, b"x").unwrap_err().kind(), "past-eof");
    f.set_len(4 * PAGE).unwrap();
    // All of this thread: had it to wait, it would be refused.
    device_writes(&f, 3 * PAGE + 100, &[8; 50], After::WriteBack);
    device_writes(&f, PAGE + 900, &[8; 100], After::WriteBack);
    assert_eq!(map.load_u8(3 * PAGE as usize + 100).unwrap(), 8);
    f.write_at(&[9; 10], 2 * PAGE).unwrap();
    let over = f.pin(PAGE + 1000..PAGE + 1001, PinMode::Read).map(drop).unwrap_err();
    assert_eq!(over.kind(), "would-deadlock", "its bytes it keeps");
    // While another pin lets the device store to the page, so may the kernels of this one.
    let beside = f.pin(3 * PAGE + 200..4 * PAGE, PinMode::Write).unwrap();
    beside.view().unwrap().write(3 * PAGE + 200, &[8; 50]).unwrap();
    view.write(3 * PAGE, &[6; 100]).unwrap();
    beside.release().unwrap();
    drop(view);
    assert_eq!(pin.release().unwrap_err().kind(), "file-shrunk");
    let mut model = pattern(4 * PAGE);
    model[PAGE as usize + 500..].fill(0);
    for (at, bytes) in [(3 * PAGE + 100, [8; 50]), (PAGE + 900, [8; 50]), (PAGE + 950, [8; 50])] {
        model[at as usize..][..50].copy_from_slice(&bytes);
    }
    model[2 * PAGE as usize..][..10].fill(9);
    model[3 * PAGE as usize + 200..][..50].fill(8);
    same(&r.on_disk("a"), &model, "the file");
    same(&device_reads(&f, 0..4 * PAGE), &model, "the device");
}
