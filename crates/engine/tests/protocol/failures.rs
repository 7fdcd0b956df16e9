//! What remains after actions have failed.

use pageferry_engine::*;

use crate::bench::*;

/// Nobody could tell what the device stored: all that it may have stored to is the newest there is.
#[test]
fn a_release_that_cannot_ask_what_was_stored_keeps_all_of_it_away() {
    for reply in [EIO, LOST] {
        let (mut b, file) = Bench::new(8, 16);
        b.map(file, 0..16);
        let held = b.granted(1, pin(file, 100..4 * P, Mode::Write));
        b.now = at(3 * P, 1);
        b.done(2, Request::Resize { file, bytes: 3 * P });
        b.broken = Box::new(move |a| matches!(a, Action::TakeDirty { .. }).then(|| reply.clone()));
        let op = b.submit(1, Request::Release { pin: held, keep: false });
        assert!(matches!(b.run(op), Some(Err(Refusal::Failed(_)))));
        assert_eq!(b.engine.live_pins(), 0);
        assert_eq!(b.engine.away_bytes(), 3 * P - 100, "inside the pin's cut, and no byte more");
        assert_eq!(b.engine.first_trapped(file, MapKey(1), &(0..16 * P)), Some(0));
    }
}

#[test]
fn what_a_lost_device_had_is_never_shown_as_home() {
    let (mut b, file) = Bench::new(8, 16);
    b.map(file, 0..16);
    let held = b.granted(1, pin(file, 0..P, Mode::Write));
    b.broken = Box::new(|a| match a {
        Action::TakeDirty { .. } | Action::WriteBack { .. } | Action::Hide { .. } => Some(LOST),
        _ => None,
    });
    let op = b.submit(1, Request::Release { pin: held, keep: false });
    assert_eq!(b.run(op), Some(Err(Refusal::Failed(19))));
    let query = b.submit(1, Request::Query { file, range: 0..P });
    let Some(Ok(Outcome::Placed(placed))) = b.run(query) else { panic!() };
    assert_eq!(placed[0].state, PageState::Away);
    let flush = Request::Flush { file, range: 0..P, skip_pinned: false };
    for request in [flush, Request::Touch { file, at: 0 }] {
        let op = b.submit(1, request);
        assert_eq!(b.run(op), Some(Err(Refusal::Failed(19))));
    }
    b.done(1, Request::MapOut { file, map: MapKey(1) });
    let close = b.submit(1, Request::Close { file });
    assert_eq!(b.run(close), Some(Err(Refusal::Failed(19))));
    assert_eq!(b.engine.abandon(file).unwrap().1, P, "the loss is told");
}

#[test]
fn a_file_can_be_cut_after_the_device_was_lost() {
    let (mut b, file) = Bench::new(8, 64);
    b.map(file, 0..64);
    let held = b.granted(1, pin(file, 0..64 * P, Mode::Write));
    b.broken = Box::new(|a| match a {
        Action::TakeDirty { .. } | Action::WriteBack { .. } | Action::Hide { .. } => Some(LOST),
        _ => None,
    });
    b.now = at(20 * P, 1);
    b.done(2, Request::Resize { file, bytes: 20 * P });
    let op = b.submit(1, Request::Release { pin: held, keep: false });
    assert!(b.run(op).unwrap().is_err());
    b.now = at(P, 1);
    b.done.clear();
    b.done(2, Request::Resize { file, bytes: P });
    assert_eq!(b.engine.away_bytes(), P);
    assert_eq!(b.engine.frames_used(), 1, "the frames beyond are given back");
    assert_eq!(b.engine.first_trapped(file, MapKey(1), &(P..64 * P)), None);
    assert!(!b.done.iter().any(|a| matches!(a, Action::Hide { .. })), "there is nothing to hide");
}

/// The frame is still where it was: it is given back another time.
#[test]
fn a_frame_that_cannot_be_given_back_stays_in_the_books() {
    let (mut b, file) = Bench::new(8, 64);
    assert!(b.fetches(1, file, 0..64 * P));
    b.broken = Box::new(|a| matches!(a, Action::Free { .. }).then_some(EIO));
    b.now = at(P, 1);
    b.done(2, Request::Resize { file, bytes: P });
    let close = b.submit(1, Request::Close { file });
    assert_eq!(b.run(close), Some(Err(Refusal::Failed(5))));
    assert_eq!(b.engine.frames_used(), 4);
    b.broken = Box::new(|_| None);
    b.done(1, Request::Close { file });
    assert_eq!(b.engine.frames_used(), 0);
}

#[test]
fn what_can_be_written_back_is_written_beside_what_cannot() {
    let cannot = |a: &Action| match a {
        Action::WriteBack { range, .. } if range.start < 16 * P => Some(EIO),
        _ => None,
    };
    let all = 0..64 * P;
    for what in ["flush", "release", "evict", "close"] {
        let (mut b, file) = Bench::new(8, 64);
        b.away(1, file, 0..P);
        b.away(1, file, 2 * P + 50..3 * P);
        b.away(1, file, 20 * P..21 * P);
        let request = match what {
            "flush" => Request::Flush { file, range: all.clone(), skip_pinned: false },
            "evict" => Request::Evict { file, range: all.clone() },
            "close" => Request::Close { file },
            _ => {
                let pin = b.granted(1, pin(file, all.clone(), Mode::Write));
                Request::Release { pin, keep: false }
            }
        };
        b.broken = Box::new(cannot);
        let op = b.submit(1, request);
        assert_eq!(b.run(op), Some(Err(Refusal::Failed(5))), "{what}");
        assert_eq!(b.engine.away_bytes(), 2 * P - 50, "{what}");
        let (_, lost) = b.engine.abandon(file).unwrap();
        assert_eq!(lost, 2 * P - 50, "{what}");
    }
}

#[test]
fn what_cannot_be_written_back_does_not_wait_for_pins() {
    let (mut b, file) = Bench::new(8, 64);
    b.away(1, file, 0..2 * P);
    b.granted(1, pin(file, P..2 * P, Mode::Write));
    b.broken = Box::new(|a| matches!(a, Action::WriteBack { .. }).then_some(EIO));
    let op = b.submit(2, Request::Flush { file, range: 0..2 * P, skip_pinned: false });
    assert_eq!(b.run(op), Some(Err(Refusal::Failed(5))));
}

#[test]
fn evicted_bytes_are_counted_once() {
    let (mut b, file) = Bench::new(8, 16);
    assert!(b.fetches(1, file, 0..4 * P));
    let op = b.submit(1, Request::Evict { file, range: 0..16 * P });
    assert!(b.engine.help(op, 0).is_none());
    b.run(op).unwrap().unwrap();
    assert_eq!(b.engine.stats().evicted_bytes, 4 * P);
}

/// Ten pins of a third file, where two away folios hold all frames and one cannot go home.
#[test]
fn a_page_that_cannot_be_written_back_does_not_stop_eviction() {
    let (mut b, bad) = Bench::new(2, 16);
    let good = b.engine.add_file(b.now.clone());
    let third = b.engine.add_file(b.now.clone());
    b.away(1, bad, 0..P);
    b.away(1, good, 0..P);
    b.broken = Box::new(move |a| match a {
        Action::WriteBack { file, .. } if *file == bad => Some(EIO),
        _ => None,
    });
    for _ in 0..10 {
        let pin = b.granted(1, pin(third, 0..P, Mode::Read));
        b.done(1, Request::Release { pin, keep: false });
    }
    assert!(b.engine.is_away(bad, &(0..P)));
    assert!(!b.engine.is_away(good, &(0..P)));
    // When it is the only one left the error shows; and once it can go, it goes.
    let _held = b.granted(1, pin(third, 0..P, Mode::Read));
    let op = b.submit(2, pin(good, 0..P, Mode::Read));
    assert_eq!(b.run(op), Some(Err(Refusal::Failed(5))));
    b.broken = Box::new(|_| None);
    b.granted(2, pin(good, 0..P, Mode::Read));
}

#[test]
fn a_trap_that_cannot_be_lifted_does_not_stop_eviction() {
    let (mut b, file) = Bench::new(2, 64);
    b.map(file, 0..64);
    b.away(1, file, 0..P);
    b.away(1, file, 16 * P..17 * P);
    b.broken = Box::new(|a| match a {
        Action::Untrap { range, .. } if range.start < 16 * P => Some(NO_VMAS),
        _ => None,
    });
    b.granted(1, pin(file, 32 * P..33 * P, Mode::Read));
    let op = b.submit(2, pin(file, 48 * P..49 * P, Mode::Read));
    assert_eq!(b.run(op), Some(Err(Refusal::Failed(12))));
}

#[test]
fn a_trap_that_cannot_be_lifted_does_not_hang_a_truncation() {
    let (mut b, file) = Bench::new(8, 64);
    b.map(file, 0..64);
    b.away(1, file, 2 * P..6 * P);
    b.broken = Box::new(|a| matches!(a, Action::Untrap { .. }).then_some(NO_VMAS));
    b.now = at(4 * P, 1);
    b.done(2, Request::Resize { file, bytes: 4 * P });
    let held = b.granted(1, pin(file, 0..P, Mode::Read));
    b.done(1, Request::Release { pin: held, keep: false });
    assert!(b.engine.first_trapped(file, MapKey(1), &(4 * P..6 * P)).is_some());
    b.broken = Box::new(|_| None);
    b.granted(1, pin(file, 0..P, Mode::Read));
    assert_eq!(b.engine.first_trapped(file, MapKey(1), &(4 * P..6 * P)), None);
}

#[test]
fn of_a_request_that_is_withdrawn_nothing_remains() {
    let (mut b, file) = Bench::new(2, 16);
    b.map(file, 0..16);
    let op = b.submit(1, pin(file, 0..P, Mode::Write));
    let fetching = b.until_fetch(op);
    b.engine.complete(fetching, EIO);
    b.engine.withdraw(op, 7);
    assert!(b.run(op).unwrap().is_err());
    assert_eq!((b.engine.live_pins(), b.engine.frames_used()), (0, 0));
    assert_eq!(b.engine.first_trapped(file, MapKey(1), &(0..P)), None);
    // What a pin may have stored is kept, who ever does not come to its release's end.
    let held = b.granted(1, pin(file, 0..P, Mode::Write));
    let op = b.submit(1, Request::Release { pin: held, keep: false });
    b.engine.withdraw(op, 7);
    assert_eq!(b.run(op), Some(Err(Refusal::Failed(7))));
    assert!(b.engine.is_away(file, &(0..P)));
}

/// Others use the device, too: that it was full once says nothing for ever.
#[test]
fn a_budget_that_the_device_did_not_have_is_tried_again_when_frames_were_freed() {
    let (mut b, file) = Bench::new(3, 64);
    assert!(b.fetches(1, file, 0..P));
    b.broken = Box::new(|a| {
        let full = Reply::Failed { class: Class::NoFrame, error: 28 };
        matches!(a, Action::Allocate { .. }).then_some(full)
    });
    assert!(b.fetches(1, file, 16 * P..17 * P));
    assert_eq!(b.engine.frames_used(), 1, "it gets on with what there is");
    b.broken = Box::new(|_| None);
    let op = b.submit(1, pin(file, 0..32 * P, Mode::Read));
    assert!(matches!(b.run(op), Some(Err(Refusal::Full { .. }))));
    b.done(1, Request::Evict { file, range: 0..64 * P });
    b.granted(1, pin(file, 0..48 * P, Mode::Read));
}

/// Whether a store past the end of file came before or after the file grew over it nobody can tell:
/// what lies inside the file when the pin ends is kept, as nothing that was inside may be lost.
#[test]
fn of_stores_past_the_end_those_inside_at_the_release_are_kept() {
    let (mut b, file) = Bench::new(3, 1);
    b.now = at(3000, 1);
    b.done(1, Request::Resize { file, bytes: 3000 });
    for (grown, kept) in [(3000, 3000), (3500, 3500)] {
        b.now = at(3000, 1);
        b.done(1, Request::Resize { file, bytes: 3000 });
        let held = b.granted(1, pin(file, 0..P, Mode::Write));
        b.now = at(grown, 1);
        b.done(2, Request::Resize { file, bytes: grown });
        b.dirty = one(0..P);
        let op = b.submit(1, Request::Release { pin: held, keep: false });
        let Some(Ok(Outcome::Released { written_bytes, lost_bytes, cut })) = b.run(op) else {
            panic!()
        };
        assert_eq!((written_bytes, lost_bytes, cut), (kept, 0, None));
    }
}

/// To lift a trap it needs no more mappings to lift all of the trapped stretch, which has to be
/// written back for that: what cannot be is tried once.
#[test]
fn a_release_does_not_try_for_ever_to_make_a_trap_liftable() {
    let (mut b, file) = Bench::new(8, 64);
    b.map(file, 0..64);
    b.away(1, file, 0..2 * P);
    let held = b.granted(1, pin(file, 2 * P..4 * P, Mode::Write));
    b.broken = Box::new(|a| match a {
        Action::Untrap { .. } => Some(NO_VMAS),
        Action::WriteBack { .. } | Action::TakeDirty { .. } => Some(LOST),
        _ => None,
    });
    b.now = at(3 * P, 1);
    b.done(2, Request::Resize { file, bytes: 3 * P });
    let op = b.submit(1, Request::Release { pin: held, keep: true });
    assert_eq!(b.run(op), Some(Err(Refusal::Failed(19))));
}

/// It had shrunk and grown back: what else is missing is fetched all the same.
#[test]
fn a_fetch_that_met_the_end_of_file_in_passing_leaves_no_page_out() {
    let (mut b, file) = Bench::new(8, 32);
    assert!(b.fetches(2, file, 0..P));
    let evict = b.submit(2, Request::Evict { file, range: 0..32 * P });
    let freeing = b.until(evict, |a| matches!(a, Action::Free { .. }));
    let op = b.submit(1, pin(file, 0..32 * P, Mode::Read));
    let fetching = b.until_fetch(op);
    b.engine.complete(fetching, Reply::Fetched { short: true });
    assert_eq!(b.run(op), None);
    b.engine.complete(freeing, Reply::Done);
    let Some(Ok(Outcome::Pinned(held))) = b.run(op) else { panic!("not granted") };
    assert!(b.engine.check_pin(held).unwrap());
}

/// Some bytes of a page that is otherwise unknown are due and cannot be written: the page cannot be
/// fetched, so the pin is not granted.
#[test]
fn a_page_whose_due_bytes_cannot_go_home_is_not_granted_without_its_others() {
    let (mut b, file) = Bench::new(8, 16);
    b.away(1, file, 100..200);
    let held = b.granted(1, pin(file, 100..200, Mode::Write));
    b.done(9, Request::Flush { file, range: 0..P, skip_pinned: true });
    b.done(1, Request::Release { pin: held, keep: true });
    // Another's change of the rest.
    b.now = at(16 * P, 2);
    b.broken = Box::new(|a| matches!(a, Action::WriteBack { .. }).then_some(EIO));
    let op = b.submit(1, pin(file, 0..P, Mode::Write));
    assert_eq!(b.run(op), Some(Err(Refusal::Failed(5))));
    b.broken = Box::new(|_| None);
    b.done.clear();
    b.granted(1, pin(file, 0..P, Mode::Write));
    let fetched = |a: &Action| matches!(a, Action::Fetch { range, .. } if *range == (0..P));
    assert!(b.done.iter().any(fetched));
}
