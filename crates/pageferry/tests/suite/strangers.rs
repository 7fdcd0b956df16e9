//! Strangers, in processes of their own, that go the ways of `ways.rs`: against copies, against what is
//! away, and in a race with what moves.

use std::path::Path;

use crate::common::*;
use crate::stranger::{Board, Stranger};
use crate::ways::{self, EDITS, Page, READS, WRITES};
use pageferry::{After, CacheConfig, Coherence, Error, File, Guard, PinMode};

pub const PAGES: u64 = 8;
const ALL: std::ops::Range<u64> = 0..PAGES * PAGE;
const GUARDS: [Guard; 2] = [Guard::Lease, Guard::Fanotify];

pub fn filled(pages: u64, number: u64) -> Vec<u8> {
    Page::of(number).0.repeat(pages as usize)
}

fn put(model: &mut [u8], page: u64, number: u64) {
    model[(page * PAGE) as usize..][..4096].copy_from_slice(&Page::of(number).0);
}

pub fn guarded(guard: Guard) -> Rig {
    rig_with(16, CacheConfig::default().flush_age(None).guard(guard))
}

/// The device writes so many pages of one number, and they are kept away. `Err`: why they cannot be.
pub fn keep(f: &File, pages: u64, number: u64) -> Result<(), String> {
    let mut tries = 0;
    loop {
        let pin = f.pin(0..pages * PAGE, PinMode::Write).unwrap();
        pin.view().unwrap().write(0, &filled(pages, number)).unwrap();
        match pin.release_with(After::KeepAway) {
            Ok(_) => return Ok(()),
            // A child that another test forks has all descriptors until it calls exec; who has just
            // gone may be on its way.
            Err(Error::Unguarded { why, .. }) if why.contains("somebody") && tries < 200 => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(Error::Unguarded { why, .. }) => return Err(why),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Copies that will be used again, as long as nobody comes.
#[track_caller]
pub fn prove(f: &File) {
    for _ in 0..2000 {
        device_reads(f, ALL);
        if f.coherence().unwrap() == Coherence::Proven {
            // Perhaps only now, and what was read before is not trusted.
            device_reads(f, ALL);
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("never proven: {:?}", f.coherence().unwrap());
}

/// Each change is seen by the next pin, whether the stranger has come before the copies were made or
/// after, and whether it is still there.
pub fn changes_are_seen(path: &Path, by: &Path) {
    let rig = guarded(Guard::None);
    std::fs::write(path, filled(PAGES, 1)).unwrap();
    let f = rig.cache.open(path).unwrap();
    let mut stranger = Stranger::new(by);
    let (mut model, mut number) = (filled(PAGES, 1), 1);
    for way in WRITES {
        for comes in ["and goes", "before", "after"] {
            let what = format!("{way}, {comes}");
            if comes == "before" {
                stranger.does(&format!("open {way}"));
                device_reads(&f, ALL);
            } else {
                prove(&f);
            }
            if comes == "after" {
                stranger.does(&format!("open {way}"));
            }
            // The second change meets copies made since the first.
            for page in [5, 5, 2] {
                number += 1;
                if let Err(why) = stranger.try_do(&format!("write {way} {page} {number}")) {
                    crate::skipped!("{way} on {}: {why}", by.display());
                    break;
                }
                put(&mut model, page, number);
                same(&device_reads(&f, ALL), &model, &what);
            }
            stranger.does("go");
            same(&device_reads(&f, ALL), &model, &what);
            same(&std::fs::read(by).unwrap(), &model, &what);
        }
    }
}

#[test]
fn a_change_by_any_way_is_seen_by_the_next_pin() {
    within(100, || {
        let dir = tempfile::tempdir().unwrap();
        changes_are_seen(&dir.path().join("a"), &dir.path().join("a"));
    });
}

/// Mappings that were there before the copy, or come after it, and are stored to again and again.
#[test]
fn stores_through_old_and_new_mappings_are_seen() {
    let rig = guarded(Guard::None);
    std::fs::write(rig.path("a"), filled(PAGES, 1)).unwrap();
    let f = rig.cache.open(rig.path("a")).unwrap();
    let mut stranger = Stranger::new(&rig.path("a"));
    let mut number = 1;
    for before in [true, false] {
        if before {
            stranger.does("map");
            device_reads(&f, ALL);
        } else {
            prove(&f);
            stranger.does("map");
        }
        for _ in 0..20 {
            number += 1;
            stranger.does(&format!("store 3 {number}"));
            same(&device_reads(&f, 3 * PAGE..4 * PAGE), &Page::of(number).0, "a store");
        }
        // Its last store is complete, its mapping is gone, and no pin has been between the two.
        number += 1;
        stranger.does(&format!("store 3 {number}"));
        stranger.does("go");
        same(&device_reads(&f, 3 * PAGE..4 * PAGE), &Page::of(number).0, "the last store");
    }
}

/// By a path: reads and writes of what is away, by each way that is wanted.
pub fn away_bytes_are_the_files(path: &Path, by: &Path, wanted: impl Fn(Guard, &str) -> bool) {
    for guard in GUARDS {
        let wanted = |way: &&str| wanted(guard, way);
        let rig = guarded(guard);
        std::fs::write(path, filled(PAGES, 1)).unwrap();
        let f = rig.cache.open(path).unwrap();
        if let Err(why) = keep(&f, PAGES, 2) {
            crate::skipped!("{guard:?} on {}: {why}", path.display());
            continue;
        }
        let mut stranger = Stranger::new(by);
        let mut number = 2;
        for way in READS.into_iter().filter(wanted) {
            number += 1;
            keep(&f, PAGES, number).unwrap();
            let what = format!("{guard:?}, read by {way}");
            match stranger.try_do(&format!("read {way} 5")) {
                Ok(seen) => assert_eq!(seen, format!("{number} {number}"), "{what}"),
                Err(why) => crate::skipped!("{way} on {}: {why}", by.display()),
            }
            same(&device_reads(&f, ALL), &filled(PAGES, number), &what);
            same(&std::fs::read(by).unwrap(), &filled(PAGES, number), &what);
        }
        for way in WRITES.into_iter().filter(wanted) {
            number += 2;
            keep(&f, PAGES, number).unwrap();
            let what = format!("{guard:?}, written by {way}");
            if let Err(why) = stranger.try_do(&format!("write {way} 5 {}", number + 1)) {
                crate::skipped!("{way} on {}: {why}", by.display());
                continue;
            }
            let mut model = filled(PAGES, number);
            put(&mut model, 5, number + 1);
            same(&device_reads(&f, ALL), &model, &what);
            f.flush(ALL).unwrap();
            same(&std::fs::read(by).unwrap(), &model, &what);
        }
    }
}

#[test]
fn strangers_read_and_write_what_the_device_has_kept() {
    within(100, || {
        let dir = tempfile::tempdir().unwrap();
        away_bytes_are_the_files(&dir.path().join("a"), &dir.path().join("a"), |_, _| true);
    });
}

/// Under fanotify, one that stays: whatever it does next waits as well.
#[test]
fn strangers_that_stay_read_and_write_what_the_device_has_kept() {
    within(100, || {
        let rig = guarded(Guard::Fanotify);
        std::fs::write(rig.path("a"), filled(PAGES, 1)).unwrap();
        let f = rig.cache.open(rig.path("a")).unwrap();
        if let Err(why) = keep(&f, PAGES, 2) {
            return crate::skipped!("{why}");
        }
        let mut stranger = Stranger::new(&rig.path("a"));
        let mut number = 2;
        let both = WRITES.map(|w| ("write", w)).into_iter().chain(READS.map(|r| ("read", r)));
        for (how, way) in both {
            number += 2;
            keep(&f, PAGES, number).unwrap_or_else(|why| panic!("before {how} by {way}: {why}"));
            stranger.does(&format!("open {way}"));
            let what = format!("{how} by {way}");
            let mut model = filled(PAGES, number);
            // What lies before the place may be kept away again, unless it was mapped as well.
            for page in [5, 2] {
                let seen = match how {
                    "write" => stranger.try_do(&format!("write {way} {page} {}", number + 1)),
                    _ => stranger.try_do(&format!("read {way} {page}")),
                };
                match seen {
                    Err(why) => {
                        crate::skipped!("{way}: {why}");
                        break;
                    }
                    Ok(_) if how == "write" => put(&mut model, page, number + 1),
                    Ok(seen) => assert_eq!(seen, format!("{number} {number}"), "{what} at {page}"),
                }
                same(&device_reads(&f, ALL), &model, &what);
                number += 2;
                let pin = f.pin(0..3 * PAGE, PinMode::Write).unwrap();
                pin.view().unwrap().write(0, &filled(3, number)).unwrap();
                (0..3).for_each(|page| put(&mut model, page, number));
                match pin.release_with(After::KeepAway) {
                    Ok(_) => {}
                    Err(Error::Unguarded { why, .. }) => {
                        assert!(why.contains("somebody else"), "{why}");
                    }
                    Err(error) => panic!("{what}: {error}"),
                }
            }
            stranger.does("go");
            f.flush(ALL).unwrap();
            same(&rig.on_disk("a"), &model, &what);
        }
    });
}

/// Changes that move bytes or the file's end, over copies and over what is away.
#[test]
fn edits_by_strangers_are_seen_and_not_undone() {
    // Under fanotify nobody is asked about an open that empties the file: see below.
    edits([Guard::None, Guard::Lease, Guard::Fanotify].into(), |guard, how| {
        guard != Guard::Fanotify || how != "O_TRUNC-extend"
    });
}

#[test]
fn an_open_that_empties_a_gated_file_is_not_undone() {
    edits(vec![Guard::Fanotify], |_, how| how == "O_TRUNC-extend");
}

fn edits(guards: Vec<Guard>, wanted: fn(Guard, &str) -> bool) {
    within(100, move || {
        for guard in guards {
            let rig = guarded(guard);
            std::fs::write(rig.path("a"), filled(PAGES, 1)).unwrap();
            let f = rig.cache.open(rig.path("a")).unwrap();
            let tried = if guard == Guard::None { Ok(()) } else { keep(&f, PAGES, 2) };
            if let Err(why) = tried {
                crate::skipped!("{guard:?}: {why}");
                continue;
            }
            let mut stranger = Stranger::new(&rig.path("a"));
            let mut number = 2;
            for how in EDITS.into_iter().filter(|how| wanted(guard, how)) {
                for stays in [false, true] {
                    number += 2;
                    let what = format!("{guard:?}, {how}, stays: {stays}");
                    f.set_len(PAGES * PAGE).unwrap();
                    // Each page has its own number, or what moves would look the same.
                    let mut model = filled(PAGES, 0);
                    (0..PAGES).for_each(|p| put(&mut model, p, number * 1000 + p));
                    f.write_at(&model, 0).unwrap();
                    match guard {
                        Guard::None => prove(&f),
                        _ => {
                            // All but the first and the last page.
                            let part = 4096..7 * 4096;
                            keep(&f, PAGES, number).unwrap();
                            let pin = f.pin(PAGE..7 * PAGE, PinMode::Write).unwrap();
                            pin.view().unwrap().write(PAGE, &model[part.clone()]).unwrap();
                            pin.release_with(After::KeepAway).unwrap();
                            model[..4096].copy_from_slice(&Page::of(number).0);
                            model[7 * 4096..].copy_from_slice(&Page::of(number).0);
                        }
                    }
                    if stays {
                        stranger.does("open pwrite");
                    }
                    match stranger.try_do(&format!("edit {how} {number}")) {
                        Ok(_) => ways::edited(&mut model, how, number),
                        Err(why) => crate::skipped!("{how}: {why}"),
                    }
                    same(&device_reads(&f, 0..model.len() as u64), &model, &what);
                    stranger.does("go");
                    f.flush(0..u64::MAX).unwrap();
                    same(&rig.on_disk("a"), &model, &what);
                    same(&device_reads(&f, 0..model.len() as u64), &model, &what);
                }
            }
        }
    });
}

/// A stranger writes one page again and again while its neighbour is written by the device, and pins
/// fetch what it writes.
#[test]
fn writes_by_any_way_race_what_moves() {
    const TIMES: u64 = 60;
    within(100, || {
        for guard in GUARDS {
            for way in WRITES {
                let rig = guarded(guard);
                // Far from what is written past the page cache: the kernel promises no coherence
                // within a large folio.
                let (mine, theirs) = (0, if ways::is_direct(way) { 512 } else { 1 });
                let file = std::fs::File::create(rig.path("a")).unwrap();
                file.set_len(513 * PAGE).unwrap();
                drop(file);
                let board = Board::create(&rig.path("board")).unwrap();
                let f = rig.cache.open(rig.path("a")).unwrap();
                let mut stranger = Stranger::new(&rig.path("a"));
                let board_path = rig.path("board");
                let order = format!("race {way} {mine} {theirs} {TIMES} {}", board_path.display());
                stranger.order(&order);
                let answered = std::sync::atomic::AtomicBool::new(false);
                let order = std::sync::atomic::Ordering::SeqCst;
                let (mut kept, mut number, what) = (0, 0, format!("{guard:?}, {way}"));
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                            stranger.answer()
                        }));
                        answered.store(true, order);
                        match told {
                            Ok(Err(why)) => crate::skipped!("{way}: {why}"),
                            Ok(Ok(_)) => {}
                            Err(panic) => std::panic::resume_unwind(panic),
                        }
                    });
                    while !answered.load(order) {
                        number += 1;
                        let at = theirs * PAGE;
                        let pin = f.pin(at..at + PAGE, PinMode::Write).unwrap();
                        let mut seen = Page::of(0);
                        pin.view().unwrap().read(at, &mut seen.0).unwrap();
                        assert_eq!(seen.numbers(), (number - 1, number - 1), "{what}: undone");
                        pin.view().unwrap().write(at, &Page::of(number).0).unwrap();
                        match pin.release_with(After::KeepAway) {
                            Ok(_) => kept += 1,
                            Err(Error::Unguarded { .. }) => {}
                            Err(error) => panic!("{what}: {error}"),
                        }
                        board.release(number);
                        let before = board.done();
                        let bytes = device_reads(&f, mine * PAGE..(mine + 1) * PAGE);
                        let (least, most) = Page(bytes.try_into().unwrap()).numbers();
                        let begun = board.begun();
                        assert!(least >= before, "{what}: {least} after {before} was complete");
                        assert!(most <= begun, "{what}: {most} before {begun} had begun");
                    }
                });
                println!("{what}: {kept} of {number} kept away");
                f.flush(0..u64::MAX).unwrap();
            }
        }
    });
}
