//! Kept away under a guard: others wait, and see what the device wrote.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::common::*;
use pageferry::{After, CacheConfig, Coherence, Error, Guard, PageState, PinMode};

fn guarded(frames: u64, guard: Guard) -> Rig {
    rig_with(frames, CacheConfig::default().flush_age(None).guard(guard))
}

fn state(file: &pageferry::File) -> PageState {
    file.placement(0..1).unwrap()[0].state
}

/// Whatever an outsider opens the file for, it waits until all is home, and nothing moves to the device
/// again for one that only reads.
#[test]
fn whoever_opens_the_file_sees_what_the_device_wrote() {
    opens_see_what_the_device_wrote(Guard::Lease);
}

#[test]
fn whoever_reads_a_gated_file_sees_what_the_device_wrote() {
    opens_see_what_the_device_wrote(Guard::Fanotify);
}

fn opens_see_what_the_device_wrote(guard: Guard) {
    within(60, move || {
        let r = guarded(8, guard);
        let f = r.file("a", 4 * PAGE);
        if let Some(why) = missing(&r, &f) {
            return crate::skipped!("{why}");
        }
        for round in 1..50_u8 {
            let bytes = vec![round; 4 * PAGE as usize];
            device_writes(&f, 0, &bytes, After::KeepAway);
            assert_eq!(state(&f), PageState::Away);
            let fetched = r.stat("fetched_bytes");
            match round % 4 {
                0 => same(&r.on_disk("a"), &bytes, "our own process"),
                1 => {
                    let out = std::process::Command::new("cat").arg(r.path("a")).output().unwrap();
                    same(&out.stdout, &bytes, "cat");
                }
                2 => {
                    let file = std::fs::OpenOptions::new().append(true).open(r.path("a")).unwrap();
                    drop(file);
                    same(&r.on_disk("a"), &bytes, "after a writer that wrote nothing");
                }
                _ => {
                    let path = std::ffi::CString::new(r.path("a").to_str().unwrap()).unwrap();
                    // SAFETY: a valid path.
                    assert_eq!(unsafe { libc::truncate(path.as_ptr(), 5000) }, 0);
                    same(&r.on_disk("a"), &bytes[..5000], "after a truncation");
                    std::fs::OpenOptions::new()
                        .write(true)
                        .open(r.path("a"))
                        .unwrap()
                        .write_all_at(&bytes[5000..], 5000)
                        .unwrap();
                }
            }
            assert_ne!(state(&f), PageState::Away);
            same(&device_reads(&f, 0..4 * PAGE), &bytes, "the device");
            if round % 4 < 2 {
                assert_eq!(r.stat("fetched_bytes"), fetched, "round {round}: readers move nothing");
            }
        }
    });
}

/// A lease is held while something is away, and no longer: then even those who would not wait can open
/// the file.
#[test]
fn a_lease_is_held_only_while_something_is_away() {
    use std::os::unix::fs::OpenOptionsExt;
    let r = guarded(8, Guard::Lease);
    let f = r.file("a", 4 * PAGE);
    let open = || {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK).open(r.path("a"))
    };
    device_reads(&f, 0..4 * PAGE);
    drop(open().unwrap());
    device_writes(&f, 0, &[7; 100], After::KeepAway);
    assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::EAGAIN));
    // That brought it home all the same.
    while state(&f) == PageState::Away {
        std::thread::yield_now();
    }
    // As soon as that opener's wait is over.
    let keep = |byte: u8| {
        let pin = f.pin(0..100, PinMode::Write).unwrap();
        pin.view().unwrap().write(0, &[byte; 100]).unwrap();
        pin.release_with(After::KeepAway)
    };
    while keep(8).is_err() {
        std::thread::yield_now();
    }
    f.flush(0..PAGE).unwrap();
    let file = (0..1000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(1));
        open().ok()
    });
    assert!(file.is_some(), "the lease stayed");
    assert_eq!(r.on_disk("a")[..100], [8; 100]);
}

/// What is stored under a live write pin is not away: outsiders get the old bytes and do not wait.
#[test]
fn a_live_write_pin_makes_nobody_wait() {
    within(60, || {
        let r = guarded(8, Guard::Lease);
        let f = r.file("a", 4 * PAGE);
        device_writes(&f, 2 * PAGE, &[5; 4096], After::KeepAway);
        let pin = f.pin(0..PAGE, PinMode::Write).unwrap();
        pin.view().unwrap().write(0, &[9; 4096]).unwrap();
        let mut model = pattern(4 * PAGE);
        model[8192..12288].fill(5);
        same(&r.on_disk("a"), &model, "outsiders before the release");
        pin.release().unwrap();
        model[..4096].fill(9);
        same(&r.on_disk("a"), &model, "and after it");
    });
}

/// Where nothing can be kept, the bytes go home at once and the error says why.
#[test]
fn keeping_away_is_refused_where_nobody_guards_it() {
    let r = guarded(8, Guard::None);
    let f = r.file("a", 4 * PAGE);
    let refused = |f: &pageferry::File, byte: u8| {
        let pin = f.pin(0..100, PinMode::Write).unwrap();
        pin.view().unwrap().write(0, &[byte; 100]).unwrap();
        pin.release_with(After::KeepAway).unwrap_err()
    };
    let error = refused(&f, 1);
    assert_eq!((error.kind(), error.errno()), ("unguarded", libc::EBUSY));
    assert!(error.to_string().contains("no guard was asked for"), "{error}");
    assert_eq!(r.on_disk("a")[..100], [1; 100]);
    let r = guarded(8, Guard::Auto);
    let f = r.file("a", 4 * PAGE);
    let reader = std::fs::File::open(r.path("a")).unwrap();
    let error = refused(&f, 2);
    assert!(
        matches!(&error, Error::Unguarded { why, .. } if why.contains("somebody else")),
        "{error}"
    );
    assert_eq!(r.on_disk("a")[..100], [2; 100]);
    drop(reader);
    while f.coherence().unwrap() != Coherence::Proven {
        std::thread::yield_now();
    }
    device_writes(&f, 0, &[3; 100], After::KeepAway);
    assert_eq!(state(&f), PageState::Away);
    assert_eq!(r.on_disk("a")[..100], [3; 100]);
}

/// Bytes that cannot go home keep the opener waiting while they are tried; then it is let in.
#[test]
fn bytes_that_cannot_go_home_are_tried_and_kept() {
    within(60, || {
        let r = guarded(8, Guard::Lease);
        let f = r.file("a", 4 * PAGE);
        device_writes(&f, 0, &[7; 4096], After::KeepAway);
        r.device.arm(pageferry::soft::FailPoint::CopyOut, 3);
        let mut model = pattern(4 * PAGE);
        model[..4096].fill(7);
        same(&r.on_disk("a"), &model, "home at the fourth try");
    });
}

/// Openers, keepers and readers of the device at random: whoever opens the file sees at least what was
/// released before.
#[test]
fn openers_race_releases_that_keep_away() {
    race(Guard::Lease);
}

#[test]
fn readers_of_a_gated_file_race_releases_that_keep_away() {
    race(Guard::Fanotify);
}

fn race(guard: Guard) {
    within(100, move || {
        let r = guarded(8, guard);
        let f = r.file("a", 2 * PAGE);
        if let Some(why) = missing(&r, &f) {
            return crate::skipped!("{why}");
        }
        let complete = std::sync::atomic::AtomicU64::new(0);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::SeqCst;
        f.write_at(&0_u64.to_le_bytes(), 100).unwrap();
        let (mut kept, mut refused) = (0, 0);
        device_writes(&f, 0, &[1; 8], After::KeepAway);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(order) {
                        let before = complete.load(order);
                        let mut word = [0; 8];
                        let file = std::fs::File::open(r.path("a")).unwrap();
                        file.read_exact_at(&mut word, 100).unwrap();
                        drop(file);
                        let seen = u64::from_le_bytes(word);
                        assert!(seen >= before, "an outsider saw {seen} after {before}");
                        std::thread::sleep(Duration::from_micros(seen % 700));
                    }
                });
            }
            for n in 1..3000_u64 {
                let pin = f.pin(100..108, PinMode::Write).unwrap();
                pin.view().unwrap().write(100, &n.to_le_bytes()).unwrap();
                match pin.release_with(After::KeepAway) {
                    Ok(_) => kept += 1,
                    Err(Error::Unguarded { .. }) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
                complete.store(n, order);
                assert_eq!(device_reads(&f, 100..108), n.to_le_bytes());
            }
            stop.store(true, order);
        });
        println!("{kept} kept away, {refused} refused");
    });
}

/// Under fanotify a descriptor that was opened while bytes were away may stay open: each access waits until
/// what it asks for is home, and nothing else. What it writes to is not kept away again before it is gone,
/// and nothing is while it may map the file.
#[test]
fn a_descriptor_that_stays_waits_at_each_access() {
    within(60, || {
        let r = guarded(8, Guard::Fanotify);
        let f = r.file("a", 8 * PAGE);
        if let Some(why) = missing(&r, &f) {
            return crate::skipped!("{why}");
        }
        device_writes(&f, 6 * PAGE, &[6; 4096], After::KeepAway);
        let reader = std::fs::File::open(r.path("a")).unwrap();
        assert_eq!(
            f.placement(6 * PAGE..7 * PAGE).unwrap()[0].state,
            PageState::Away,
            "only opened"
        );
        device_writes(&f, 0, &[1; 4096], After::KeepAway);
        assert_eq!(state(&f), PageState::Away, "kept though somebody has it open");
        let mut byte = [0];
        reader.read_exact_at(&mut byte, 6 * PAGE + 9).unwrap();
        assert_eq!(byte, [6]);
        let at = |page: u64| f.placement(page * PAGE..(page + 1) * PAGE).unwrap()[0].state;
        assert_eq!((at(0), at(6)), (PageState::Away, PageState::Copy), "what it did not ask for");
        let keep = |page: u64, byte: u8| {
            let pin = f.pin(page * PAGE..(page + 1) * PAGE, PinMode::Write).unwrap();
            pin.view().unwrap().write(page * PAGE, &[byte]).unwrap();
            pin.release_with(After::KeepAway)
        };
        keep(6, 66).unwrap();
        assert_eq!(at(6), PageState::Away, "reading leaves nothing behind");
        reader.read_exact_at(&mut byte, 6 * PAGE).unwrap();
        assert_eq!(byte, [66]);
        let writer = std::fs::File::options().write(true).open(r.path("a")).unwrap();
        writer.write_all_at(&[5], 5 * PAGE + 1).unwrap();
        let refused = keep(5, 55).unwrap_err();
        assert!(refused.to_string().contains("has touched it"), "{refused}");
        keep(4, 44).unwrap();
        assert_eq!((at(0), at(4)), (PageState::Away, PageState::Away));
        let map = mapped(&reader, 7 * PAGE, false);
        assert_ne!((at(0), at(4)), (PageState::Away, PageState::Away), "a mapping can grow");
        assert!(matches!(keep(1, 1).unwrap_err(), Error::Unguarded { .. }));
        let mut model = pattern(8 * PAGE);
        model[..4096].fill(1);
        model[6 * 4096..7 * 4096].fill(6);
        for (at, byte) in [(6, 66), (5, 55), (4, 44), (1, 1)] {
            model[at * 4096] = byte;
        }
        model[5 * 4096 + 1] = 5;
        same(&r.on_disk("a"), &model, "the file");
        same(&device_reads(&f, 0..8 * PAGE), &model, "the device");
        drop((map, reader, writer));
        // A child that another test forks may have the descriptor until it calls exec.
        while keep(7, 9).is_err() {
            std::thread::yield_now();
        }
        assert_eq!(r.on_disk("a")[7 * 4096], 9);
    });
}

/// Nobody gets EAGAIN from the gate, and our own truncation does not wait for itself.
#[test]
fn the_gate_lets_everybody_in() {
    use std::os::unix::fs::OpenOptionsExt;
    within(60, || {
        let r = guarded(8, Guard::Fanotify);
        let f = r.file("a", 8 * PAGE);
        if let Some(why) = missing(&r, &f) {
            return crate::skipped!("{why}");
        }
        for round in 1..20_u8 {
            device_writes(&f, 0, &vec![round; 8 * PAGE as usize], After::KeepAway);
            f.set_len(5 * PAGE + 100).unwrap();
            f.punch_hole(PAGE..2 * PAGE).unwrap();
            device_writes(&f, 3 * PAGE, &[round ^ 1; 10], After::KeepAway);
            let mut options = std::fs::OpenOptions::new();
            let other =
                options.write(true).custom_flags(libc::O_NONBLOCK).open(r.path("a")).unwrap();
            other.set_len(4 * PAGE).unwrap();
            drop(other);
            let mut model = vec![round; 4 * PAGE as usize];
            model[4096..8192].fill(0);
            model[3 * 4096..][..10].fill(round ^ 1);
            same(&r.on_disk("a"), &model, "the file");
            same(&device_reads(&f, 0..4 * PAGE), &model, "the device");
            f.set_len(8 * PAGE).unwrap();
        }
    });
}
