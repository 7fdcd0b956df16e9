//! Kernels whose closures do more than compute: none may hang the cache, nor keep it.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::*;
use pageferry::{After, Error, PinMode};

#[test]
fn a_closure_may_access_another_file() {
    within(20, || {
        let rig = rig(16);
        let (a, b) = (rig.file("a", 16 * PAGE), rig.file("b", 16 * PAGE));
        let (from, to) = (a.view(false).unwrap(), b.view(true).unwrap());
        let copy = |_| {
            let (mut at, mut done) = (0, Ok(()));
            from.visit(0..16 * PAGE, &mut |piece| {
                done = to.write(at, piece);
                at += piece.len() as u64;
            })?;
            done
        };
        rig.cache.launch(1, copy).unwrap();
        drop(from);
        to.close().unwrap();
        same(&rig.on_disk("b"), &pattern(16 * PAGE), "the copy");
    });
}

#[test]
fn a_closure_may_access_its_own_pages_and_the_cache() {
    within(20, || {
        let rig = rig(16);
        let file = rig.file("f", 4 * PAGE);
        let view = file.view(true).unwrap();
        let mut first = 0;
        view.update(0..4 * PAGE, &mut |piece| {
            let mut byte = [0];
            view.read(10, &mut byte).unwrap();
            first = byte[0];
            file.placement(0..4 * PAGE).unwrap();
            piece[10] = 77;
        })
        .unwrap();
        assert_eq!(first, pattern(11)[10]);
        view.close().unwrap();
        assert_eq!(rig.on_disk("f")[10], 77);
    });
}

#[test]
fn nested_loads_get_on_beside_somebody_who_pins() {
    within(60, || {
        let rig = rig(16);
        let (a, b) = (rig.file("a", 8 * FRAME), rig.file("b", 8 * FRAME));
        let pin = |f: &pageferry::File| f.pin(0..FRAME, PinMode::Read).unwrap();
        let (pin_a, pin_b) = (pin(&a), pin(&b));
        let (view_a, view_b) = (pin_a.view().unwrap(), pin_b.view().unwrap());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0.. {
                    let at = (1 + turn % 7) * FRAME;
                    drop(a.pin(at..at + 10, PinMode::Write));
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            for _ in 0..5000 {
                let mut buf = [0; 64];
                view_a.visit(0..4096, &mut |_| view_b.read(0, &mut buf).unwrap()).unwrap();
                assert_eq!(buf, pattern(64)[..]);
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn a_closure_that_panics_leaves_its_view_usable() {
    within(20, || {
        let rig = rig(16);
        let file = rig.file("f", 16 * PAGE);
        let view = file.view(true).unwrap();
        let failed = rig.cache.launch(1, |_| view.update(0..100, &mut |_| panic!("kernel")));
        assert!(matches!(failed, Err(Error::KernelFailed(_))), "{failed:?}");
        rig.cache.launch(1, |_| view.update(50..150, &mut |piece| piece.fill(1))).unwrap();
        view.close().unwrap();
        assert_eq!(rig.on_disk("f")[50..150], [1; 100]);
    });
}

#[test]
fn closing_a_view_flushes_what_it_wrote_and_nothing_between() {
    let rig = rig(64);
    let file = rig.file("f", 256 * PAGE);
    device_writes(&file, 50 * PAGE, &[5; 10], After::KeepAway);
    let pin = file.pin(50 * PAGE..51 * PAGE, PinMode::Write).unwrap();
    let view = file.view(true).unwrap();
    view.write(0, &[1; 8]).unwrap();
    view.write(100 * PAGE, &[1; 8]).unwrap();
    assert_eq!(view.close().unwrap().written_back_bytes, 16);
    pin.release().unwrap();
}

#[test]
fn ranges_near_the_end_of_numbers_are_refused() {
    let rig = rig(16);
    let file = rig.file("f", PAGE);
    let view = file.view(false).unwrap();
    let mut buf = [0; 8];
    assert!(matches!(view.read(u64::MAX - 100, &mut buf), Err(Error::PastEof { .. })));
    assert!(matches!(view.read(u64::MAX - 3, &mut buf), Err(Error::InvalidArgument(_))));
    assert!(matches!(view.visit(0..u64::MAX, &mut |_| ()), Err(Error::PastEof { .. })));
    let pin = file.pin(0..PAGE, PinMode::Read).unwrap();
    let outside = pin.view().unwrap().visit(0..u64::MAX, &mut |_| panic!("nothing is visited"));
    assert!(matches!(outside, Err(Error::OutsidePin { .. })));
    let Ok(map) = file.map(0..PAGE, true) else { return skipped!("no userfaultfd") };
    assert!(matches!(map.read(usize::MAX - 3, &mut buf), Err(Error::InvalidArgument(_))));
    assert!(matches!(map.sync(0..usize::MAX), Err(Error::InvalidArgument(_))));
}

#[test]
fn on_demand_views_fault_and_write_back() {
    let r = rig(4);
    let f = r.file("a", 20 * FRAME);
    let view = f.view(true).unwrap();
    r.cache
        .launch(20, |g| {
            let range = g * FRAME + 10..(g + 1) * FRAME - 10;
            view.update(range, &mut |bytes| bytes.iter_mut().for_each(|b| *b ^= 0xFF))
        })
        .unwrap();
    let summary = view.close().unwrap();
    // One fault a frame, and another where a pin was let go between its load and its store.
    assert!((20..=40).contains(&summary.faults), "{} faults", summary.faults);
    let mut model = pattern(20 * FRAME);
    for g in 0..20 {
        let range = (g * FRAME + 10) as usize..((g + 1) * FRAME - 10) as usize;
        model[range].iter_mut().for_each(|b| *b ^= 0xFF);
    }
    same(&r.on_disk("a"), &model, "the file");
    assert_eq!(r.stat("live_pins"), 0);
    let view = f.view(false).unwrap();
    assert!(matches!(view.write(0, b"x"), Err(Error::ReadOnly(_))));
    assert!(matches!(view.read(20 * FRAME, &mut [0]), Err(Error::PastEof { .. })));
}

/// One access at a time: what it used last is what the next one finds held.
#[test]
fn a_view_on_demand_lets_the_longest_unused_go() {
    let r = rig(4);
    let f = r.file("a", 20 * FRAME);
    let view = f.view(true).unwrap();
    let mut flip = |bytes: &mut [u8]| bytes.iter_mut().for_each(|b| *b ^= 0xFF);
    for g in 0..20 {
        view.update(0..100, &mut flip).unwrap();
        view.update(g * FRAME + 200..(g + 1) * FRAME - 10, &mut flip).unwrap();
    }
    assert_eq!(view.close().unwrap().faults, 21);
    let mut model = pattern(20 * FRAME);
    for g in 0..20 {
        model[(g * FRAME + 200) as usize..((g + 1) * FRAME - 10) as usize]
            .iter_mut()
            .for_each(|b| *b ^= 0xFF);
    }
    same(&r.on_disk("a"), &model, "the file");
}

/// Two views that want each other's bytes take turns: neither is refused, neither waits for ever.
#[test]
fn views_on_demand_that_cross_take_turns() {
    within(60, || {
        let r = rig(4);
        let f = r.file("a", 4 * FRAME);
        std::thread::scope(|scope| {
            for mark in [1, 2] {
                let (r, f) = (&r, &f);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let view = f.view(true).unwrap();
                        r.cache
                            .launch(8, |g| {
                                let g = if mark == 1 { g % 4 } else { 3 - g % 4 };
                                view.write(g * FRAME, &[mark; 64])?;
                                view.write(g * FRAME + 32, &[mark; 64])
                            })
                            .unwrap();
                        view.close().unwrap();
                    }
                });
            }
        });
        let after = r.on_disk("a");
        let mut model = pattern(4 * FRAME);
        for g in 0..4 {
            let at = (g * FRAME) as usize;
            // Each store is one piece under one pin: whole, the last one wins.
            let marks: Vec<u8> = after[at..at + 96].to_vec();
            assert!(marks.iter().all(|m| [1, 2].contains(m)), "{marks:?}");
            assert_eq!(marks[32..].iter().min(), marks[32..].iter().max(), "{marks:?}");
            model[at..at + 96].copy_from_slice(&marks);
        }
        same(&after, &model, "the file");
    });
}
