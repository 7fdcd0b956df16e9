//! What somebody else wrote, beside what we do ourselves.

use std::os::unix::fs::FileExt;

use crate::common::*;
use pageferry::{CacheConfig, Coherence, PinMode, Validation};

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

/// A change by others between two looks is seen, however many stores of our own come before and after.
#[test]
fn own_stores_before_and_after_do_not_hide_it() {
    for store_first in [false, true] {
        let rig = rig(16);
        let file = rig.file("f", 16 * PAGE);
        let map = file.map(8 * PAGE..9 * PAGE, true).unwrap();
        device_reads(&file, 0..16 * PAGE);
        if store_first {
            map.store_u8(0, 1).unwrap();
        }
        outsider_writes(&rig, 0);
        map.store_u8(1, 2).unwrap();
        map.unmap().unwrap();
        let map = file.map(8 * PAGE..9 * PAGE, true).unwrap();
        map.store_u8(2, 3).unwrap();
        let pin = file.pin(0..PAGE, PinMode::Write).unwrap();
        let mut seen = [0; 4096];
        pin.view().unwrap().read(0, &mut seen).unwrap();
        assert_eq!(seen, [THEIRS; 4096]);
        pin.release().unwrap();
        assert_eq!(device_reads(&file, 8 * PAGE..8 * PAGE + 3)[1..], [2, 3]);
    }
}

/// Pages that come home to a mapping hide nothing either.
#[test]
fn pages_that_come_home_do_not_hide_it() {
    let rig = rig(16);
    let file = rig.file("f", 16 * PAGE);
    let map = file.map(0..16 * PAGE, true).unwrap();
    device_reads(&file, 0..16 * PAGE);
    device_writes(&file, 8 * PAGE, &[1; 100], pageferry::After::KeepAway);
    outsider_writes(&rig, 0);
    assert_eq!(map.load_u8(8 * PAGE as usize).unwrap(), 1);
    assert_eq!(device_reads(&file, 0..1), [THEIRS]);
}

/// Whoever only reads and goes costs nothing; whoever stays costs the proof, until it goes.
#[test]
fn readers_that_leave_cost_nothing() {
    let rig = rig(16);
    let file = rig.file("f", 16 * PAGE);
    device_reads(&file, 0..16 * PAGE);
    assert_eq!(file.coherence().unwrap(), Coherence::Proven);
    let moved = || rig.stat("fetched_bytes");
    let before = moved();
    for _ in 0..5 {
        assert!(
            std::process::Command::new("cmp")
                .arg(rig.path("f"))
                .arg(rig.path("f"))
                .status()
                .unwrap()
                .success()
        );
        device_reads(&file, 0..16 * PAGE);
    }
    assert_eq!(moved(), before, "nothing moved for readers");
    // Who has it open for writing. (A daemon's client has not, before it writes.)
    file.write_at(b"!", 0).unwrap();
    let before = moved();
    let reader = std::fs::File::open(rig.path("f")).unwrap();
    for turn in 1..4 {
        device_reads(&file, 0..PAGE);
        assert!(moved() - before >= turn * PAGE, "each pin copies while a reader is there");
    }
    assert!(
        matches!(file.coherence().unwrap(), Coherence::Unproven(why) if why.contains("somebody else"))
    );
    drop(reader);
    device_reads(&file, 0..16 * PAGE);
    // A child that another test forks may have the reader's descriptor until it calls exec.
    while file.coherence().unwrap() != Coherence::Proven {
        std::thread::yield_now();
    }
    device_reads(&file, 0..16 * PAGE);
    let before = moved();
    device_reads(&file, 0..16 * PAGE);
    assert_eq!(moved(), before);
}

/// To a file that the cache only reads, other readers do not matter.
#[test]
fn readers_do_not_matter_to_a_reader() {
    let rig = rig(16);
    std::fs::write(rig.path("f"), pattern(16 * PAGE)).unwrap();
    let file = rig.cache.open_read_only(rig.path("f")).unwrap();
    let _reader = std::fs::File::open(rig.path("f")).unwrap();
    device_reads(&file, 0..16 * PAGE);
    let before = rig.stat("fetched_bytes");
    device_reads(&file, 0..16 * PAGE);
    assert_eq!(rig.stat("fetched_bytes"), before);
    assert_eq!(file.coherence().unwrap(), Coherence::Proven);
    outsider_writes(&rig, 3);
    assert_eq!(device_reads(&file, 3 * PAGE..3 * PAGE + 2), [THEIRS; 2]);
}

/// Opening a known file again leaves no trace: what the device has stays good.
#[test]
fn opening_again_costs_nothing() {
    let rig = rig(16);
    let file = rig.file("f", 16 * PAGE);
    device_reads(&file, 0..16 * PAGE);
    let before = rig.stat("fetched_bytes");
    let again = rig.cache.open(rig.path("f")).unwrap();
    let reader = rig.cache.open_read_only(rig.path("f")).unwrap();
    device_reads(&again, 0..16 * PAGE);
    device_reads(&reader, 0..16 * PAGE);
    assert_eq!(rig.stat("fetched_bytes"), before);
}

/// `truncate` by name, by our own process, which opens nothing and looks like a write of our own.
#[test]
fn the_applications_own_truncation_by_name_is_seen() {
    let rig = rig(16);
    let file = rig.file("f", 16 * PAGE);
    let path = std::ffi::CString::new(rig.path("f").to_str().unwrap()).unwrap();
    for round in 0..200_u64 {
        file.write_at(&vec![round as u8 | 1; 16 * PAGE as usize], 0).unwrap();
        device_reads(&file, 0..16 * PAGE);
        // Beside writes of our own to other pages.
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for page in 0..4 {
                    file.write_at(&[7; 100], page * PAGE).unwrap();
                }
            });
            for bytes in [8 * PAGE, 16 * PAGE] {
                // SAFETY: a valid path.
                assert_eq!(unsafe { libc::truncate(path.as_ptr(), bytes as libc::off_t) }, 0);
            }
            writer.join().unwrap();
        });
        assert_eq!(device_reads(&file, 8 * PAGE..16 * PAGE), vec![0; 8 * 4096], "round {round}");
    }
}

/// A file that nobody can change any more needs no proof, whoever has it open.
#[test]
fn a_sealed_file_is_fixed() {
    use std::io::Write;
    use std::os::fd::AsFd;
    let memfd = rustix::fs::memfd_create("sealed", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    let mut memfd = std::fs::File::from(memfd);
    memfd.write_all(&pattern(8 * PAGE)).unwrap();
    let seals =
        rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
    let rig = rig(4);
    let reader =
        std::fs::File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memfd)))
            .unwrap();
    let file = rig.cache.open_fd(reader.as_fd()).unwrap();
    assert_eq!(file.coherence().unwrap(), Coherence::Fixed);
    same(&device_reads(&file, 0..8 * PAGE), &pattern(8 * PAGE), "the device");
    let before = rig.stat("fetched_bytes");
    device_reads(&file, 0..8 * PAGE);
    assert_eq!(rig.stat("fetched_bytes"), before);
}

/// On a file system where a proof would not hold none is tried; stamps are taken only if asked for.
#[test]
fn an_overlay_proves_nothing() {
    let base = match crate::mount::Mount::tmpfs(16 << 20) {
        Ok(base) => base,
        Err(why) => return crate::skipped!("{why}"),
    };
    let dir = |name: &str| {
        let path = base.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let options =
        format!("lowerdir={},upperdir={},workdir={}", dir("lower"), dir("upper"), dir("work"));
    let overlay = match crate::mount::Mount::overlay(&options) {
        Ok(overlay) => overlay,
        Err(why) => return crate::skipped!("{why}"),
    };
    let path = overlay.path().join("f");
    std::fs::write(&path, pattern(8 * PAGE)).unwrap();
    for validation in [Validation::Proof, Validation::Stamps] {
        let config = CacheConfig::default().flush_age(None).validation(validation);
        let rig = rig_with(4, config);
        let file = rig.cache.open(&path).unwrap();
        device_reads(&file, 0..8 * PAGE);
        let before = rig.stat("fetched_bytes");
        device_reads(&file, 0..8 * PAGE);
        let moved = rig.stat("fetched_bytes") - before;
        match validation {
            Validation::Stamps => {
                assert_eq!((moved, file.coherence().unwrap()), (0, Coherence::Stamps));
            }
            _ => {
                assert_eq!(moved, 8 * PAGE);
                assert!(matches!(file.coherence().unwrap(), Coherence::Unproven(_)));
            }
        }
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(&[THEIRS; 9], 0)
            .unwrap();
        assert_eq!(device_reads(&file, 0..9), [THEIRS; 9]);
    }
}
