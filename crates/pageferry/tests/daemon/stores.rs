//! Releases whose stores are not what they should be. The pins that a release names are gone whatever is wrong with
//! its stores; nothing of the stores is in the file.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::common::*;
use crate::raw::*;
use pageferry_wire::*;

/// Refused, nothing is stored, the pin is gone.
#[track_caller]
fn refused(d: &Daemon, what: &str, pin: PinId, raw: &mut Raw, stores: Stores, memory: &OwnedFd) {
    let answer = raw.release_stored(pin, stores, memory.as_fd());
    assert!(matches!(&answer, Err(Failure::Protocol(_))), "{what}: {answer:?}");
    is_protocol(raw.release(pin));
    same(&std::fs::read(d.path("a")).unwrap(), &pattern(FILE), what);
    assert_eq!(d.stat("live_pins"), 0, "{what}: the pin is still there");
}

fn records(runs: &[(u64, u64)], bytes: usize) -> OwnedFd {
    let records = runs.iter().flat_map(|(at, len)| [at.to_le_bytes(), len.to_le_bytes()].concat());
    sealed(&[records.collect(), vec![0xEE; bytes]].concat())
}

fn memfd(bytes: &[u8], seals: i32) -> OwnedFd {
    // SAFETY: makes a descriptor.
    let fd = unsafe { libc::memfd_create(c"stores".as_ptr(), libc::MFD_ALLOW_SEALING) };
    assert!(fd >= 0);
    // SAFETY: just made, nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let file = std::fs::File::from(fd);
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
    // SAFETY: numbers.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }, 0);
    file.into()
}

#[test]
fn stores_in_memory_of_the_wrong_kind_are_refused() {
    alone(120, || {
        let d = daemon(8);
        let path = d.file("a");
        let mut raw = d.client();
        let file = raw.open(&path, true);
        let range: Range<u64> = 0..4096;
        let content = [0u64.to_le_bytes(), 4096u64.to_le_bytes()].concat();
        let content = [content, vec![0xEE; 4096]].concat();
        let (shrink, grow, write) = (libc::F_SEAL_SHRINK, libc::F_SEAL_GROW, libc::F_SEAL_WRITE);
        let plain = d.path("stores");
        std::fs::write(&plain, &content).unwrap();
        let open = |flags: i32| -> OwnedFd {
            use std::os::unix::fs::OpenOptionsExt;
            std::fs::File::options().read(true).custom_flags(flags).open(&plain).unwrap().into()
        };
        let (pipe, end) = std::io::pipe().unwrap();
        let write_only = {
            let memory = sealed(&content);
            let by_path = format!("/proc/self/fd/{}", memory.as_raw_fd());
            // What is sealed may still be opened so by its owner, though nothing can be written.
            std::fs::File::options().write(true).open(by_path).map(OwnedFd::from).ok()
        };
        let mut memories = vec![
            ("unsealed", memfd(&content, 0)),
            ("sealed against other sizes only", memfd(&content, shrink | grow)),
            ("can shrink", memfd(&content, write | grow)),
            ("can grow", memfd(&content, write | shrink)),
            (
                "sealed against later writers",
                memfd(&content, shrink | grow | libc::F_SEAL_FUTURE_WRITE),
            ),
            ("too short", sealed(&content[..content.len() - 1])),
            ("empty", sealed(&[])),
            ("too long", sealed(&[&content[..], &[0]].concat())),
            ("a regular file", open(0)),
            ("O_PATH", open(libc::O_PATH)),
            ("a pipe", pipe.into()),
        ];
        memories.extend(write_only.map(|memory| ("write only", memory)));
        for (what, memory) in memories {
            let pin = raw.pin(file, range.clone(), Mode::Write).unwrap();
            let stores = Stores { file, runs: 1, bytes: 4096 };
            refused(&d, what, pin, &mut raw, stores, &memory);
        }
        // And right ones are taken.
        let pin = raw.pin(file, range, Mode::Write).unwrap();
        let memory = sealed(&content);
        raw.release_stored(pin, Stores { file, runs: 1, bytes: 4096 }, memory.as_fd()).unwrap();
        same(&std::fs::read(&path).unwrap()[..4096], &[0xEE; 4096], "right stores");
        drop((raw, memory, end));
        d.ends_clean();
    });
}

#[test]
fn stores_of_claimed_sizes_are_refused_and_not_allocated() {
    alone(120, || {
        let d = daemon(8);
        let path = d.file("a");
        let mut raw = d.client();
        let file = raw.open(&path, true);
        for (runs, bytes) in [
            (1, u64::MAX),
            (1, u64::MAX - 16),
            (1, 1 << 62),
            (STORE_RUNS_MAX, u64::MAX),
            (0, 4096),
            (2, 4080),
            (1, 4095),
            (1, 4097),
            (0, 0),
        ] {
            let pin = raw.pin(file, 0..4096, Mode::Write).unwrap();
            let memory = records(&[(0, 4096)], 4096);
            refused(&d, "claimed", pin, &mut raw, Stores { file, runs, bytes }, &memory);
        }
        // A file with a huge hole is as large as it says, and its runs are checked before they are read.
        let pin = raw.pin(file, 0..4096, Mode::Write).unwrap();
        let huge = 1u64 << 40;
        // SAFETY: makes a descriptor.
        let fd = unsafe { libc::memfd_create(c"stores".as_ptr(), libc::MFD_ALLOW_SEALING) };
        // SAFETY: just made, nobody else's.
        let memory = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        memory.set_len(16 + huge).unwrap();
        let record = [0u64.to_le_bytes(), huge.to_le_bytes()].concat();
        std::os::unix::fs::FileExt::write_all_at(&memory, &record, 0).unwrap();
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
        // SAFETY: numbers.
        assert_eq!(unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, seals) }, 0);
        let stores = Stores { file, runs: 1, bytes: huge };
        refused(&d, "a huge hole", pin, &mut raw, stores, &memory.into());
        // More runs than may be are no message at all.
        let stores = Stores { file, runs: STORE_RUNS_MAX + 1, bytes: 0 };
        let request = Request::Release { pins: vec![], stores: Some(stores) };
        assert!(encode_call(&Call { id: 1, request }).is_err());
        drop(raw);
        d.ends_clean();
    });
}

#[test]
fn stores_outside_of_their_pins_are_refused() {
    alone(120, || {
        let d = daemon(16);
        let path = d.file("a");
        let mut raw = d.client();
        let mut other = d.client();
        let file = raw.open(&path, true);
        let theirs = other.open(&path, true);
        let bad: [(&str, &[(u64, u64)]); 11] = [
            ("before the pin", &[(4096, 4096)]),
            ("behind the pin", &[(16384, 4096)]),
            ("over its start", &[(8191, 2)]),
            ("over its end", &[(16383, 2)]),
            ("right, then outside", &[(8192, 4096), (16384, 1)]),
            ("overlapping", &[(8192, 4096), (12287, 10)]),
            ("twice the same", &[(8192, 16), (8192, 16)]),
            ("out of order", &[(12288, 16), (8192, 16)]),
            ("empty", &[(8192, 0)]),
            ("beyond any file", &[(u64::MAX - 8, 8)]),
            ("around the end of numbers", &[(8192, u64::MAX - 8000)]),
        ];
        for (what, runs) in bad {
            let pin = raw.pin(file, 8192..16384, Mode::Write).unwrap();
            let bytes = runs.iter().fold(0u64, |sum, run| sum.wrapping_add(run.1));
            let memory = records(runs, bytes.min(1 << 16) as usize);
            let stores = Stores { file, runs: runs.len() as u64, bytes };
            refused(&d, what, pin, &mut raw, stores, &memory);
        }
        // Under a pin for reading, and under one that another session has.
        let pin = raw.pin(file, 0..4096, Mode::Read).unwrap();
        let (stores, memory) = stored(file, &[0..4096], 0xEE);
        refused(&d, "under a read pin", pin, &mut raw, stores, &memory);
        drop(memory);
        let their_pin = other.pin(theirs, 0..4096, Mode::Write).unwrap();
        let (stores, memory) = stored(file, &[0..4096], 0xEE);
        let request = Request::Release { pins: vec![], stores: Some(stores) };
        is_protocol(raw.call(request, &[memory.as_fd()]));
        drop(memory);
        same(&std::fs::read(&path).unwrap(), &pattern(FILE), "the file");
        // Theirs is still there, and as it was.
        assert_eq!(d.stat("live_pins"), 1);
        let (stores, memory) = stored(theirs, &[0..16], 0xAB);
        other.release_stored(their_pin, stores, memory.as_fd()).unwrap();
        let mut expected = pattern(FILE);
        expected[..16].fill(0xAB);
        same(&std::fs::read(&path).unwrap(), &expected, "what the other one stored");
        drop((raw, other, memory));
        d.ends_clean();
    });
}

/// Two pins that touch each other do not hold a run that lies in both; a release that names no pin leaves them.
#[test]
fn refused_stores_leave_pins_that_are_not_named() {
    alone(60, || {
        let d = daemon(8);
        let path = d.file("a");
        let mut raw = d.client();
        let file = raw.open(&path, true);
        let pins = [0..4096, 4096..8192].map(|r| raw.pin(file, r, Mode::Write).unwrap());
        let (stores, memory) = stored(file, &[4000..5000], 0xEE);
        let request = Request::Release { pins: vec![], stores: Some(stores) };
        is_protocol(raw.call(request, &[memory.as_fd()]));
        assert_eq!(d.stat("live_pins"), 2);
        for pin in pins {
            raw.release(pin).unwrap();
        }
        same(&std::fs::read(&path).unwrap(), &pattern(FILE), "the file");
        // A pin named twice, and one unknown: each is answered by itself.
        let pin = raw.pin(file, 0..4096, Mode::Write).unwrap();
        let release = |pin| Release { pin, after: After::WriteBack };
        let pins = vec![release(PinId(0)), release(pin), release(pin)];
        let Ok(Reply::Released { pins }) = raw.ask(Request::Release { pins, stores: None }) else {
            panic!("not answered one by one");
        };
        assert_eq!(pins.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false]);
        drop((raw, memory));
        d.ends_clean();
    });
}
