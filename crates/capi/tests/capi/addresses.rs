//! Loads and stores by address.

use std::ptr::null_mut;

use pageferry_c::*;

use crate::held::*;
use crate::{bad, daemon, good};

const LEN: u64 = 300_001;
/// Of the daemon's device.
const FRAME: u64 = 64 << 10;

fn contents() -> Vec<u8> {
    (0..LEN).map(|i| (i % 251) as u8).collect()
}

fn loaded(address: u64, len: u64) -> Vec<u8> {
    let start = address as *const u8;
    // SAFETY: the caller has the address of so many bytes from the library, under a pin that is held.
    let load = |i| unsafe { start.wrapping_add(i).read_volatile() };
    (0..len as usize).map(load).collect()
}

fn store(address: u64, bytes: &[u8]) {
    for (to, byte) in (address as usize..).zip(bytes) {
        // SAFETY: the caller has the address of so many bytes from the library, under a write pin that is held.
        unsafe { (to as *mut u8).write_volatile(*byte) };
    }
}

#[test]
fn loads_by_address_see_the_file() {
    let (daemon, dir) = (daemon(), tempfile::tempdir().unwrap());
    let path = dir.path().join("data");
    std::fs::write(&path, contents()).unwrap();
    let cache = cache(Some(&daemon.socket));
    let file = open(cache, &path);
    let all = pin(file, 0, LEN, PF_PIN_READ);
    let part = pin(file, 70_000, 5000, PF_PIN_READ);
    let (a, b) = (segment(all, 0, LEN), segment(part, 71_000, 4000));
    assert_eq!((a.flags, b.flags), (PF_SEGMENT_MAPPED, PF_SEGMENT_MAPPED));
    assert_eq!(loaded(a.address, LEN), contents());
    assert_eq!(loaded(b.address, 4000), contents()[71_000..75_000]);
    // A pin's addresses outlive the other pins of its bytes, also when there are newer ones.
    release(all);
    release(pin(file, 200_000, 1000, PF_PIN_WRITE));
    release(pin(file, 0, 1000, PF_PIN_READ));
    assert_eq!(loaded(b.address, 4000), contents()[71_000..75_000]);
    release(part);
    close(file, cache);
}

#[test]
fn stores_by_address_go_to_the_file_at_the_release() {
    let (daemon, dir) = (daemon(), tempfile::tempdir().unwrap());
    let path = dir.path().join("data");
    std::fs::write(&path, contents()).unwrap();
    let mut expected = contents();
    let cache = cache(Some(&daemon.socket));
    let file = open(cache, &path);
    for mode in [PF_PIN_WRITE, PF_PIN_OVERWRITE] {
        // Across frames, beginning and ending inside of pages.
        let (start, len) = (60_000, 80_001);
        let held = pin(file, start, len, mode);
        let s = segment(held, start, len);
        assert_eq!(s.flags, PF_SEGMENT_MAPPED | PF_SEGMENT_WRITABLE);
        let mode = mode as u8;
        store(s.address, &[mode, 2, 3]);
        store(s.address + 70_000, &[4, mode, 6]);
        store(s.address + len - 1, &[90 + mode]);
        // By both ways to one page.
        write(held, start + 100, b"written");
        store(s.address + 102, b"IT");
        assert_eq!(read(held, start + 100, 7), b"wrITten");
        assert_eq!(read(held, start, 3), [mode, 2, 3]);
        assert_eq!(std::fs::read(&path).unwrap(), expected, "before the release");
        assert!(release(held) > 0);
        if mode == PF_PIN_OVERWRITE as u8 {
            // What was not stored to keeps its bytes by whole pages only.
            break;
        }
        expected[60_000..60_003].copy_from_slice(&[mode, 2, 3]);
        expected[130_000..130_003].copy_from_slice(&[4, mode, 6]);
        expected[140_000] = 90 + mode;
        expected[60_100..60_107].copy_from_slice(b"wrITten");
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }
    let now = std::fs::read(&path).unwrap();
    assert_eq!((&now[..60_000], &now[140_001..]), (&expected[..60_000], &expected[140_001..]));
    assert_eq!((&now[60_000..60_003], &now[130_000..130_003]), (&[2, 2, 3][..], &[4, 2, 6][..]));
    assert_eq!(&now[60_100..60_107], b"wrITten");
    assert_eq!(now.len() as u64, LEN);
    close(file, cache);
}

#[test]
fn a_device_of_its_own_has_addresses_that_are_not_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, contents()).unwrap();
    let cache = cache(None);
    let file = open(cache, &path);
    let held = pin(file, 10, 1000, PF_PIN_WRITE);
    let (all, part) = (segment(held, 10, 1000), segment(held, 110, 5));
    assert_eq!((all.flags, part.flags, part.address), (0, 0, all.address + 100));
    write(held, 110, b"hello");
    assert_eq!(read(held, 109, 7), [&[109][..], b"hello", &[115]].concat());
    release(held);
    assert_eq!(&std::fs::read(&path).unwrap()[110..115], b"hello");
    close(file, cache);
}

#[test]
fn a_truncated_file_raises_no_signal() {
    let (daemon, dir) = (daemon(), tempfile::tempdir().unwrap());
    let path = dir.path().join("data");
    std::fs::write(&path, contents()).unwrap();
    let cache = cache(Some(&daemon.socket));
    let file = open(cache, &path);
    let held = pin(file, 0, LEN, PF_PIN_READ);
    let s = segment(held, 0, LEN);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(5000).unwrap();
    // The daemon learns of it with the next pin.
    release(pin(file, 0, 100, PF_PIN_READ));
    assert_eq!(loaded(s.address, 4096), contents()[..4096]);
    assert_eq!(loaded(s.address + 100_000, 100_000).len(), 100_000);
    release(held);
    close(file, cache);
}

#[test]
fn addresses_are_asked_for_inside_of_the_pin_with_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, contents()).unwrap();
    let cache = cache(None);
    let file = open(cache, &path);
    let held = pin(file, 100, 1000, PF_PIN_READ);
    let mut one = pf_segment { address: 0, offset: 0, length: 0, flags: 0 };
    let mut ask = |at, len, room: usize, expected: usize| {
        let mut count = room;
        // SAFETY: no more room is promised than there is, and a number that says so.
        let result = unsafe { pf_pin_address(held, at, len, &mut one, &mut count) };
        assert_eq!(count, expected);
        result
    };
    bad(ask(99, 10, 1, 1), libc::EPERM, "outside-pin");
    bad(ask(1000, 101, 1, 1), libc::EPERM, "outside-pin");
    bad(ask(100, 0, 1, 1), libc::EPERM, "outside-pin");
    bad(ask(u64::MAX, 2, 1, 1), libc::EINVAL, "invalid-argument");
    bad(ask(100, 1000, 0, 1), libc::ERANGE, "too-small");
    let mut count = 0;
    // SAFETY: no segments, and a number.
    good(unsafe { pf_pin_address(held, 100, 1000, null_mut(), &mut count) });
    assert_eq!(count, 1);
    // SAFETY: nothing to be written to.
    let nowhere = unsafe { pf_pin_address(held, 100, 1000, null_mut(), null_mut()) };
    bad(nowhere, libc::EINVAL, "invalid-argument");
    release(held);
    close(file, cache);
}

#[test]
fn addresses_stay_while_other_pins_make_frames_old() {
    let (daemon, dir) = (daemon(), tempfile::tempdir().unwrap());
    let path = dir.path().join("data");
    // Four times the device: there is always something to evict.
    let frames = 4 * 16 * MIB / FRAME;
    std::fs::write(&path, vec![7; (frames * FRAME) as usize]).unwrap();
    let cache = cache(Some(&daemon.socket));
    let number = open(cache, &path).addr();
    std::thread::scope(|s| {
        for thread in 0..4u64 {
            s.spawn(move || {
                let file = std::ptr::without_provenance_mut(number);
                let mut next = thread;
                for _ in 0..1500 {
                    // Most are a few frames that stay, with copies long mapped; some evict others.
                    next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let of = if (next >> 40).is_multiple_of(3) { frames } else { 8 };
                    let at = (next >> 33) % of * FRAME;
                    let held = pin(file, at, FRAME, PF_PIN_READ);
                    let s = segment(held, at, FRAME);
                    for page in (0..FRAME).step_by(4096) {
                        // Others go on meanwhile.
                        std::thread::yield_now();
                        assert_eq!(loaded(s.address + page, 1), [7]);
                    }
                    release(held);
                }
            });
        }
    });
    close(std::ptr::without_provenance_mut(number), cache);
}
