//! Under fanotify it is known where others change a file: nothing else moves to the device again.

use std::fs::{File as HostFile, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::common::*;
use pageferry::{CacheConfig, Coherence, File, Guard};

/// A page at the end is not whole.
const BYTES: u64 = 40 * PAGE + 100;

/// A file of which the device has all, behind a gate; nothing where there is none.
fn behind_a_gate() -> Option<(Rig, File)> {
    let r = rig_with(8, CacheConfig::default().flush_age(None).guard(Guard::Fanotify));
    let f = r.file("a", BYTES);
    if let Some(why) = missing(&r, &f) {
        crate::skipped!("{why}");
        return None;
    }
    settle(&r, &f);
    Some((r, f))
}

/// Until nobody else has it open. (A child that another test forks has, until it calls exec.)
fn settle(r: &Rig, f: &File) {
    let all = |r: &Rig| device_reads(f, 0..r.on_disk("a").len() as u64);
    all(r);
    while moved(r, f) > 0 {
        std::thread::yield_now();
    }
}

/// Runs a test again that failed while a loop device came or went somewhere: other tests put some on their
/// files, and then nothing is known of ours. A failure by itself stays one.
fn undisturbed(test: fn()) {
    let newest = pageferry_linux::newest_loop;
    for _ in 0..50 {
        let before = newest();
        match std::panic::catch_unwind(test) {
            Ok(()) => return,
            Err(panic) if newest() == before => std::panic::resume_unwind(panic),
            Err(_) => {}
        }
    }
    panic!("loop devices come and go all the time");
}

/// How many bytes move for the device to see all of the file, which it must.
#[track_caller]
fn moved(r: &Rig, f: &File) -> u64 {
    let before = r.stat("fetched_bytes");
    // By another thread: what one reads that also writes may have been changed by it.
    let expected = std::thread::scope(|s| s.spawn(|| r.on_disk("a")).join().unwrap());
    same(&device_reads(f, 0..expected.len() as u64), &expected, "the device");
    r.stat("fetched_bytes") - before
}

fn open(r: &Rig) -> HostFile {
    OpenOptions::new().read(true).write(true).open(r.path("a")).unwrap()
}

#[test]
fn a_write_moves_its_pages_and_no_others() {
    undisturbed(a_write_moves_its_pages_and_no_others_once);
}

fn a_write_moves_its_pages_and_no_others_once() {
    let Some((r, f)) = behind_a_gate() else { return };
    let whole = r.stat("distrusts");
    open(&r).write_all_at(&[1; 10], 3 * PAGE + 5).unwrap();
    assert_eq!(moved(&r, &f), PAGE);
    // By a process that goes.
    let target = format!("of={}", r.path("a").display());
    let dd = Command::new("dd")
        .args(["if=/dev/zero", &target, "bs=4096", "count=2", "seek=7", "conv=notrunc,nocreat"])
        .output()
        .unwrap();
    assert!(dd.status.success(), "{dd:?}");
    assert_eq!(moved(&r, &f), 2 * PAGE);
    // By somebody who stays: what it has written to may still be changing.
    let stays = open(&r);
    assert_eq!(moved(&r, &f), 0, "it has only opened the file");
    for page in [20, 21, 30] {
        stays.write_all_at(&[2; 8], page * PAGE - 4).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(moved(&r, &f), 5 * PAGE);
    }
    drop(stays);
    settle(&r, &f);
    assert_eq!(r.stat("distrusts"), whole);
    assert!(r.stat("changed_bytes") >= 8 * PAGE);
}

#[test]
fn readers_move_nothing_though_they_stay() {
    undisturbed(readers_move_nothing_though_they_stay_once);
}

fn readers_move_nothing_though_they_stay_once() {
    let Some((r, f)) = behind_a_gate() else { return };
    let reader = HostFile::open(r.path("a")).unwrap();
    reader.read_exact_at(&mut [0; 9000], 5000).unwrap();
    assert_eq!(moved(&r, &f), 0);
    assert_eq!(f.coherence().unwrap(), Coherence::Proven);
    let copy = r.path("copy");
    std::fs::copy(r.path("a"), &copy).unwrap();
    drop(reader);
    settle(&r, &f);
}

#[test]
fn an_append_moves_the_page_of_the_old_end() {
    undisturbed(an_append_moves_the_page_of_the_old_end_once);
}

fn an_append_moves_the_page_of_the_old_end_once() {
    let Some((r, f)) = behind_a_gate() else { return };
    for round in 0..3 {
        let mut log = OpenOptions::new().append(true).open(r.path("a")).unwrap();
        // From the second write on, the place that the gate is told is the old end.
        log.write_all(&[7; 50]).unwrap();
        log.write_all(&[8; 50]).unwrap();
        drop(log);
        // And the first page, which is what the gate is told.
        assert!(moved(&r, &f) <= 3 * PAGE, "round {round}");
    }
}

#[test]
fn a_truncation_and_what_grows_back_move_what_lies_behind() {
    undisturbed(a_truncation_and_what_grows_back_move_what_lies_behind_once);
}

fn a_truncation_and_what_grows_back_move_what_lies_behind_once() {
    let Some((r, f)) = behind_a_gate() else { return };
    let other = open(&r);
    other.set_len(30 * PAGE + 1).unwrap();
    other.set_len(BYTES).unwrap();
    assert_eq!(moved(&r, &f), 11 * PAGE);
    drop(other);
    settle(&r, &f);
    // Seen only by its end.
    open(&r).set_len(35 * PAGE).unwrap();
    assert_eq!(moved(&r, &f), 0, "what is left is as it was");
}

/// An open is not told to the gate. The file is as long as before when it is next looked at, and the
/// pages that are written to are told.
#[test]
fn a_file_emptied_and_filled_again_moves_all() {
    let Some((r, f)) = behind_a_gate() else { return };
    let again = |first: bool| {
        let empty = OpenOptions::new().write(true).truncate(first).open(r.path("a")).unwrap();
        empty.write_all_at(&[9; 100], 40 * PAGE).unwrap();
        empty
    };
    let mut stays = Vec::new();
    for round in 0..4 {
        // In the fourth, this thread has written before, and so has another.
        if round == 3 {
            let writer = stays.pop().unwrap();
            std::thread::scope(|s| s.spawn(|| again(false)).join().unwrap());
            stays.push(writer);
        }
        stays.push(again(true));
        assert!(moved(&r, &f) >= 40 * PAGE, "round {round}");
        open(&r).write_all_at(&pattern(BYTES), 0).unwrap();
        if round == 1 {
            stays.clear();
        }
        moved(&r, &f);
    }
}

#[test]
fn a_mapping_moves_all_until_it_is_gone() {
    let Some((r, f)) = behind_a_gate() else { return };
    let other = open(&r);
    let map = mapped(&other, 9 * PAGE, true);
    drop(other);
    for byte in 1..4 {
        map.store(100, byte);
        assert!(moved(&r, &f) >= 40 * PAGE);
    }
    drop(map);
    settle(&r, &f);
}

/// Who puts a loop device on the file writes to it without a word.
#[test]
fn a_loop_device_moves_all() {
    let Some((r, f)) = behind_a_gate() else { return };
    let losetup = |args: &[&str]| {
        let out = Command::new("losetup").args(args).output().map_err(|e| e.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
    };
    let path = r.path("a");
    let device = match losetup(&["--show", "-f", path.to_str().unwrap()]) {
        Ok(device) => device,
        Err(why) => return crate::skipped!("losetup: {why}"),
    };
    for byte in 1..4_u8 {
        let block = OpenOptions::new().write(true).open(&device).unwrap();
        block.write_all_at(&[byte; 4096], 5 * PAGE).unwrap();
        block.sync_all().unwrap();
        assert!(moved(&r, &f) >= 40 * PAGE);
    }
    losetup(&["-d", &device]).unwrap();
    settle(&r, &f);
}

/// The three reasons for which a copy moves again are told apart.
#[test]
fn the_statistics_say_what_happened() {
    undisturbed(the_statistics_say_what_happened_once);
}

fn the_statistics_say_what_happened_once() {
    let Some((r, f)) = behind_a_gate() else { return };
    let counts = || ["stored_bytes", "changed_bytes", "distrusted_bytes"].map(|name| r.stat(name));
    let map = f.map(0..BYTES, true).unwrap();
    settle(&r, &f);
    let start = counts();
    map.store_u8(3 * PAGE as usize, 1).unwrap();
    moved(&r, &f);
    let own = counts();
    assert!(own[0] > start[0] && own[1..] == start[1..], "{start:?} {own:?}");
    open(&r).write_all_at(&[1], 4 * PAGE).unwrap();
    moved(&r, &f);
    let known = counts();
    assert!(known[1] > own[1] && known[2] == own[2], "{own:?} {known:?}");
    mapped(&open(&r), 0, true).store(0, 1);
    moved(&r, &f);
    assert!(counts()[2] > known[2]);
}

/// Strangers do all they can at once, some stay and some go; whenever they pause, the device sees the
/// file as it is.
#[test]
fn a_crowd_of_strangers_hides_nothing() {
    let Some((r, f)) = behind_a_gate() else { return };
    let rounds = 60_u64;
    for round in 1..=rounds {
        std::thread::scope(|s| {
            for stranger in 0..3 {
                let (r, seed) = (&r, round * 7 + stranger + 1);
                s.spawn(move || crowd(r, &mut Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)));
            }
            // Racing them: what it shows is not known.
            let len = r.on_disk("a").len() as u64;
            if let Ok(pin) = f.pin(0..len.max(1), pageferry::PinMode::Read) {
                pin.release().unwrap();
            }
        });
        // Nobody looks before this: an `O_TRUNC` that others have filled up must not be missed.
        if round % 5 == 0 {
            moved(&r, &f);
        }
        if r.on_disk("a").is_empty() {
            open(&r).set_len(BYTES).unwrap();
        }
    }
    println!("{} copied again of {} read", r.stat("fetched_bytes"), rounds / 5 * BYTES);
}

fn crowd(r: &Rig, dice: &mut Dice) {
    let mut file = open(r);
    for _ in 0..6 {
        let at = dice.roll(BYTES);
        let byte = dice.roll(255) as u8;
        match dice.roll(12) {
            0 => file.set_len(BYTES - dice.roll(20 * PAGE)).unwrap(),
            1 => file.set_len(BYTES).unwrap(),
            2 => {
                file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(false)
                    .truncate(true)
                    .open(r.path("a"))
                    .unwrap();
                file.write_all_at(&[byte], BYTES - 1).unwrap();
            }
            3 => {
                let mut log = OpenOptions::new().append(true).open(r.path("a")).unwrap();
                log.write_all(&[byte; 33]).unwrap();
            }
            4 => drop(file.read_at(&mut [0; 5000], at)),
            5 => file = open(r),
            _ => file.write_all_at(&[byte; 77], at).unwrap(),
        }
    }
}
