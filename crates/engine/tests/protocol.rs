//! Single schedules of the protocol, step by step: each was once a bug.

#[path = "protocol/bench.rs"]
mod bench;
#[path = "protocol/cuts.rs"]
mod cuts;
#[path = "protocol/failures.rs"]
mod failures;
#[path = "protocol/queueing.rs"]
mod queueing;

use std::ops::Range;

use bench::*;
use pageferry_engine::*;

#[test]
fn an_observation_from_before_the_file_grew_does_not_shrink_it() {
    let (mut b, file) = Bench::new(8, 1);
    let slow = b.submit(1, pin(file, 0..P, Mode::Read));
    let looking = b.until(slow, |a| matches!(a, Action::Observe { .. }));
    let old = b.now.clone();
    b.now = at(2 * P, 2);
    let held = b.granted(2, pin(file, P..2 * P, Mode::Write));
    b.dirty = one(P..2 * P);
    b.done(2, Request::Release { pin: held, keep: true });
    b.engine.complete(looking, Reply::Observed(old));
    assert!(b.run(slow).unwrap().is_ok());
    assert!(b.engine.is_away(file, &(P..2 * P)), "what the device wrote is forgotten");
}

#[test]
fn of_two_observations_that_disagree_the_later_is_made_again() {
    let (mut b, file) = Bench::new(8, 8);
    assert!(b.fetches(1, file, 0..P));
    let is_look = |a: &Action| matches!(a, Action::Observe { .. });
    let first = b.submit(1, pin(file, 0..P, Mode::Read));
    let one = b.until(first, is_look);
    let second = b.submit(2, pin(file, 0..P, Mode::Read));
    let two = b.until(second, is_look);
    let old = b.now.clone();
    b.now = at(9 * P, 2);
    b.engine.complete(one, Reply::Observed(b.now.clone()));
    // Made before the change, heard of after it: it must not turn the clock back.
    b.engine.complete(two, Reply::Observed(old));
    b.done.clear();
    assert!(b.run(second).unwrap().is_ok());
    assert!(b.done.iter().any(is_look), "nobody knows which of the two is newer");
    assert!(b.run(first).unwrap().is_ok());
    assert_eq!(b.engine.stats().distrusts, 1);
}

#[test]
fn a_fetch_under_way_when_a_foreign_change_shows_is_not_believed() {
    let (mut b, file) = Bench::new(8, 8);
    let slow = b.submit(1, pin(file, 0..P, Mode::Read));
    let fetching = b.until_fetch(slow);
    b.now = at(8 * P, 2);
    b.done.clear();
    let later = b.submit(2, pin(file, 0..P, Mode::Read));
    assert_eq!(b.run(later), None, "the page is being fetched");
    b.engine.complete(fetching, Reply::Fetched { short: false });
    assert!(b.run(later).unwrap().is_ok());
    assert!(b.done.iter().any(|a| matches!(a, Action::Fetch { .. })));
}

#[test]
fn only_pages_stored_to_through_a_mapping_move() {
    let (mut b, file) = Bench::new(8, 64);
    b.map(file, 0..64);
    assert!(b.fetches(1, file, 0..8 * P));
    b.stored = one(P..2 * P);
    assert!(b.fetches(1, file, P..2 * P));
    b.stored = vec![];
    assert!(!b.fetches(1, file, 0..8 * P));
    // A write pin asks as it traps.
    b.stored = one(3 * P..4 * P);
    b.done.clear();
    b.granted(1, pin(file, 0..8 * P, Mode::Write));
    let fetched: Vec<_> =
        b.done.iter().filter(|a| matches!(a, Action::Fetch { .. })).cloned().collect();
    assert!(matches!(&fetched[..], [Action::Fetch { range, .. }] if *range == (3 * P..4 * P)));
    assert!(!b.done.iter().any(|a| matches!(a, Action::ScanStores { .. })));
}

#[test]
fn stores_found_at_a_mappings_end_move_their_pages() {
    let (mut b, file) = Bench::new(8, 64);
    b.map(file, 0..64);
    assert!(b.fetches(1, file, 0..8 * P));
    b.stored = one(P..2 * P);
    b.done(1, Request::MapOut { file, map: MapKey(1) });
    b.stored = vec![];
    assert!(!b.fetches(1, file, 0..P), "nobody stored here");
    assert!(b.fetches(1, file, P..2 * P));
}

#[test]
fn a_page_being_fetched_at_a_mappings_end_is_asked_about() {
    let (mut b, file) = Bench::new(8, 64);
    b.map(file, 0..64);
    let slow = b.submit(1, pin(file, 20 * P..21 * P, Mode::Read));
    let fetching = b.until_fetch(slow);
    b.stored = one(20 * P..21 * P);
    let end = b.submit(3, Request::MapOut { file, map: MapKey(1) });
    assert_eq!(b.run(end), None);
    b.engine.complete(fetching, Reply::Fetched { short: false });
    assert!(b.run(end).unwrap().is_ok());
    b.done.clear();
    let Some(Ok(Outcome::Pinned(held))) = b.run(slow) else { panic!("not granted") };
    let again = b.done.iter().any(|a| matches!(a, Action::Fetch { .. }));
    b.done(1, Request::Release { pin: held, keep: false });
    let later = b.fetches(1, file, 20 * P..21 * P);
    assert!(again || later, "it was stored to after it was read");
}

#[test]
fn what_an_own_change_hears_of_others_counts() {
    let (mut b, file) = Bench::new(8, 64);
    assert!(b.fetches(1, file, 0..P));
    let (op, key) = b.write_under_way(2, file, 40);
    b.engine.complete(key, Reply::Changed { after: 64 * P, error: None });
    assert!(b.run(op).unwrap().is_ok());
    b.now = at(64 * P, 2);
    assert!(b.fetches(1, file, 0..P));
}

#[test]
fn a_foreign_change_shows_while_our_own_are_under_way() {
    let (mut b, file) = Bench::new(8, 64);
    assert!(b.fetches(1, file, 20 * P..21 * P));
    let (one, first) = b.write_under_way(2, file, 0);
    let (two, second) = b.write_under_way(3, file, 4);
    b.now = at(64 * P, 2);
    assert!(b.fetches(1, file, 20 * P..21 * P));
    b.engine.complete(second, Reply::Changed { after: 64 * P, error: None });
    b.engine.complete(first, Reply::Changed { after: 64 * P, error: None });
    assert!(b.run(one).unwrap().is_ok());
    assert!(b.run(two).unwrap().is_ok());
    assert!(!b.fetches(1, file, 20 * P..21 * P));
    assert_eq!(b.engine.stats().distrusts, 1, "our own changes are nobody else's");
}

/// Who knows which pages others may have changed names them: no others are fetched again, nor is what
/// is being fetched elsewhere distrusted.
#[test]
fn of_a_known_part_only_its_pages_are_fetched_again() {
    let (mut b, file) = Bench::new(8, 64);
    assert!(b.fetches(1, file, 0..32 * P));
    let slow = b.submit(1, pin(file, 40 * P..41 * P, Mode::Read));
    let elsewhere = b.until_fetch(slow);
    let slow_too = b.submit(2, pin(file, 50 * P..51 * P, Mode::Read));
    let there = b.until_fetch(slow_too);
    b.now = Observed { parts: Some(vec![3 * P + 7..4 * P + 1, 50 * P..51 * P]), ..at(64 * P, 2) };
    assert!(b.fetches(3, file, 0..32 * P));
    let fetched: Vec<_> = b.done.iter().filter_map(fetched_range).collect();
    assert_eq!(fetched, one(3 * P..5 * P));
    b.engine.complete(elsewhere, Reply::Fetched { short: false });
    b.engine.complete(there, Reply::Fetched { short: false });
    for op in [slow, slow_too] {
        let Some(Ok(Outcome::Pinned(held))) = b.run(op) else { panic!("not granted") };
        b.done(1, Request::Release { pin: held, keep: false });
    }
    assert!(!b.fetches(3, file, 40 * P..41 * P));
    assert!(b.fetches(3, file, 50 * P..51 * P), "its fetch began before the change");
    let stats = b.engine.stats();
    assert_eq!((stats.distrusts, stats.changed_bytes), (0, 2 * P));
}

fn fetched_range(action: &Action) -> Option<Range<u64>> {
    match action {
        Action::Fetch { range, .. } => Some(range.clone()),
        _ => None,
    }
}

/// A look is asked what changed since what was heard of, not since the look before it was made: of two
/// that end in the wrong order, none leaves a part out.
#[test]
fn a_look_asks_since_what_was_heard() {
    let (mut b, file) = Bench::new(8, 8);
    let since = |b: &Bench| match b.done.first() {
        Some(Action::Observe { since, .. }) => *since,
        other => panic!("{other:?}"),
    };
    assert!(b.fetches(1, file, 0..8 * P));
    let slow = b.submit(1, pin(file, 0..P, Mode::Read));
    let looking = b.until(slow, |a| matches!(a, Action::Observe { .. }));
    // Told of a change at once, heard of it late.
    let told = Observed { parts: Some(one(P..2 * P)), ..at(8 * P, 2) };
    b.now = Observed { parts: Some(vec![P..2 * P, 5 * P..6 * P]), ..at(8 * P, 3) };
    assert!(b.fetches(2, file, 0..8 * P));
    assert_eq!(since(&b), 1);
    b.now = at(8 * P, 3);
    assert!(!b.fetches(2, file, 0..8 * P));
    assert_eq!(since(&b), 3);
    b.engine.complete(looking, Reply::Observed(told));
    assert!(b.run(slow).unwrap().is_ok());
    assert!(!b.fetches(2, file, P..8 * P), "that was heard of already");
}

/// Where nothing can be proven, every look drops the copies: what a pin has fetched for itself is
/// new enough for it all the same.
#[test]
fn a_pin_is_filled_though_others_look_all_the_time() {
    let (mut b, file) = Bench::new(8, 64);
    let slow = b.submit(1, pin(file, 0..64 * P, Mode::Read));
    for epoch in 2.. {
        let fetching = match b.engine.poll(slow, 0) {
            Step::Done(result) => {
                result.unwrap();
                break;
            }
            Step::Do(key, action @ Action::Fetch { .. }) => Ok((key, action)),
            Step::Do(key, action) => Err((key, action)),
            Step::Wait(wait) => panic!("waits for {wait:?}"),
        };
        b.now = at(64 * P, epoch);
        let (Ok((key, action)) | Err((key, action))) = fetching;
        let looker = b.submit(2, pin(file, 63 * P..64 * P, Mode::Read));
        b.run(looker);
        let reply = b.reply(&action);
        b.engine.complete(key, reply);
        if let Some(Ok(Outcome::Pinned(held))) = b.run(looker) {
            b.done(2, Request::Release { pin: held, keep: false });
        }
        assert!(epoch < 100, "never filled");
    }
}

#[test]
fn a_write_beside_a_truncation_does_not_bring_back_what_was_cut() {
    let (mut b, file) = Bench::new(8, 64);
    assert!(b.fetches(1, file, 0..P));
    b.away(1, file, 2 * P..3 * P);
    let cut = b.submit(2, Request::Resize { file, bytes: 0 });
    let cutting = b.until(cut, |a| matches!(a, Action::Change { .. }));
    let range = 40 * P..41 * P;
    let write = b.submit(3, Request::Change { file, range, resizes: false });
    let writing = b.until(write, |a| matches!(a, Action::Change { .. }));
    // The write came after the truncation and before anybody looked.
    b.now = at(41 * P, 1);
    b.engine.complete(cutting, Reply::Changed { after: b.now.bytes, error: None });
    b.engine.complete(writing, Reply::Changed { after: b.now.bytes, error: None });
    assert!(b.run(cut).unwrap().is_ok());
    assert!(b.run(write).unwrap().is_ok());
    assert!(!b.engine.is_away(file, &(0..64 * P)));
    assert!(b.fetches(1, file, 0..P));
}

#[test]
fn a_release_tells_of_bytes_that_a_foreign_truncation_took() {
    for keep_looking in [false, true] {
        let (mut b, file) = Bench::new(8, 64);
        let held = b.granted(1, pin(file, 0..8 * P, Mode::Write));
        b.dirty = one(0..8 * P);
        let op = b.submit(1, Request::Release { pin: held, keep: false });
        let writing = b.until(op, |a| matches!(a, Action::WriteBack { .. }));
        b.now = at(P, 2);
        if keep_looking {
            // Another request notices before the write-back is done.
            let looker = b.engine.submit(pin(file, 0..1, Mode::Read), Some(2), false);
            assert!(b.run(looker).is_some());
        }
        b.engine.complete(writing, Reply::WroteBack { bytes: P, after: b.now.bytes });
        let Some(Ok(Outcome::Released { written_bytes, lost_bytes, .. })) = b.run(op) else {
            panic!("the release failed")
        };
        assert_eq!((written_bytes, lost_bytes), (P, 7 * P), "noticed before: {keep_looking}");
    }
}

#[test]
fn a_release_tells_of_whole_pages_that_a_truncation_of_ours_took() {
    let (mut b, file) = Bench::new(8, 64);
    let held = b.granted(1, pin(file, 0..8 * P, Mode::Write));
    b.dirty = one(4 * P..5 * P);
    b.now = at(4 * P, 1);
    b.done(2, Request::Resize { file, bytes: 4 * P });
    b.dirty = vec![];
    let op = b.submit(1, Request::Release { pin: held, keep: false });
    let Some(Ok(Outcome::Released { written_bytes, lost_bytes, cut })) = b.run(op) else {
        panic!("the release failed")
    };
    assert_eq!((written_bytes, lost_bytes, cut), (0, P, Some(4 * P)));
}

#[test]
fn the_last_of_the_small_queue_is_evicted_when_all_else_is_pinned() {
    let (mut b, file) = Bench::new(10, 16 * 32);
    for n in 0..9 {
        b.granted(1, pin(file, n * FRAME..n * FRAME + P, Mode::Read));
    }
    assert!(b.fetches(2, file, 9 * FRAME..9 * FRAME + P));
    b.granted(2, pin(file, 10 * FRAME..10 * FRAME + P, Mode::Read));
}

#[test]
fn a_change_of_ours_that_ends_unseen_leaves_no_copy_believed() {
    let (mut b, file) = Bench::new(8, 64);
    assert!(b.fetches(1, file, 20 * P..21 * P));
    let (op, key) = b.write_under_way(2, file, 20);
    b.engine.complete(key, Reply::Failed { class: Class::Other, error: 5 });
    assert_eq!(b.run(op), Some(Err(Refusal::Failed(5))));
    assert!(b.fetches(1, file, 20 * P..21 * P));
}

#[test]
fn a_file_is_not_forgotten_while_its_frame_is_being_detached() {
    let (mut b, file) = Bench::new(1, 16);
    let other = b.engine.add_file(b.now.clone());
    assert!(b.fetches(1, file, 0..P));
    let thief = b.submit(2, pin(other, 0..P, Mode::Read));
    let stealing = b.until(thief, |a| matches!(a, Action::Steal { .. }));
    let close = b.submit(1, Request::Close { file });
    assert_eq!(b.run(close), None);
    b.engine.complete(stealing, Reply::Done);
    assert_eq!(b.run(close), Some(Ok(Outcome::Done)));
}

#[test]
fn pages_that_are_being_hidden_are_not_granted() {
    let (mut b, file) = Bench::new(8, 8);
    assert!(b.fetches(1, file, 0..P));
    b.now = at(0, 2);
    let shrink = b.submit(1, Request::Resize { file, bytes: 0 });
    let hiding = b.until(shrink, |a| matches!(a, Action::Hide { .. }));
    b.now = at(8 * P, 3);
    let grow = b.submit(2, Request::Resize { file, bytes: 8 * P });
    let later = b.submit(3, pin(file, 0..P, Mode::Read));
    assert_eq!(b.run(grow), None);
    assert_eq!(b.run(later), None);
    b.engine.complete(hiding, Reply::Done);
    for op in [shrink, grow, later] {
        assert!(b.run(op).unwrap().is_ok());
    }
}

#[test]
fn a_deeper_shrink_that_shows_while_pages_are_being_hidden_hides_more() {
    let (mut b, file) = Bench::new(8, 64);
    assert!(b.fetches(1, file, 0..64 * P));
    b.now = at(32 * P, 2);
    let shrink = b.submit(1, Request::Resize { file, bytes: 32 * P });
    let hiding = b.until(shrink, |a| matches!(a, Action::Hide { .. }));
    // Somebody else cuts it further, which a pin notices.
    b.now = at(16 * P, 3);
    let looker = b.submit(2, pin(file, 0..P, Mode::Read));
    assert_eq!(b.run(looker), None);
    b.engine.complete(hiding, Reply::Done);
    b.done.clear();
    assert!(b.run(shrink).unwrap().is_ok());
    assert!(b.run(looker).unwrap().is_ok());
    let covers = |r: &Range<u64>| r.contains(&(16 * P));
    let hides = |a: &Action| matches!(a, Action::Hide { ranges, .. } if ranges.iter().any(covers));
    assert!(b.done.iter().any(hides));
}

#[test]
fn a_pin_filled_while_the_file_shrank_and_grew_back_is_not_cut() {
    let (mut b, file) = Bench::new(8, 32);
    let slow = b.submit(1, pin(file, 0..32 * P, Mode::Write));
    let fetching = b.until_fetch(slow);
    for pages in [16, 32] {
        b.now = at(pages * P, pages);
        let who = b.engine.submit(pin(file, 0..1, Mode::Read), Some(2), false);
        assert_eq!(b.run(who), Some(Err(Refusal::WouldBlock)));
    }
    b.engine.complete(fetching, Reply::Fetched { short: false });
    let Some(Ok(Outcome::Pinned(held))) = b.run(slow) else { panic!("not granted") };
    assert_eq!(b.engine.pin_end(held), 32 * P);
    assert!(b.engine.check_pin(held).unwrap());
}

#[test]
fn a_request_that_a_helper_got_on_with_is_not_taken_for_stuck() {
    let (mut b, file) = Bench::new(1, 32);
    let held = b.granted(1, pin(file, 0..P, Mode::Read));
    let helped = b.submit(2, pin(file, 16 * P..17 * P, Mode::Read));
    assert_eq!(b.run(helped), None, "the only frame is pinned");
    b.done(1, Request::Release { pin: held, keep: false });
    let (stealing, action) = b.engine.help(helped, 0).expect("a frame is to be had");
    let later = b.submit(3, pin(file, 0..P, Mode::Read));
    assert_eq!(b.run(later), None);
    assert!(matches!(action, Action::Steal { .. }));
    b.engine.complete(stealing, Reply::Done);
    assert_eq!(b.run(later), None, "not refused: the frame will be free again");
    assert!(b.run(helped).unwrap().is_ok());
}

#[test]
fn a_frame_on_its_way_back_is_waited_for() {
    let (mut b, file) = Bench::new(1, 32);
    assert!(b.fetches(1, file, 0..P));
    let evict = b.submit(1, Request::Evict { file, range: 0..32 * P });
    let freeing = b.until(evict, |a| matches!(a, Action::Free { .. }));
    let later = b.submit(2, pin(file, 16 * P..17 * P, Mode::Read));
    assert_eq!(b.run(later), None, "not refused as full");
    b.engine.complete(freeing, Reply::Done);
    assert!(b.run(later).unwrap().is_ok());
}

#[test]
fn a_write_pin_is_not_granted_over_a_page_that_another_fetches_anew() {
    let (mut b, file) = Bench::new(8, 32);
    let slow = b.submit(1, pin(file, 100..17 * P, Mode::Write));
    let first = b.until_fetch(slow);
    b.engine.complete(first, Reply::Fetched { short: false });
    let second = b.until_fetch(slow);
    // Somebody changes the file: what was fetched first is fetched anew, for a reader beside.
    b.now = at(32 * P, 2);
    let reader = b.submit(2, pin(file, 0..50, Mode::Read));
    let again = b.until_fetch(reader);
    b.engine.complete(second, Reply::Fetched { short: false });
    assert_eq!(b.run(slow), None, "a store now would be overwritten");
    b.engine.complete(again, Reply::Fetched { short: false });
    assert!(b.run(slow).unwrap().is_ok());
    assert!(b.run(reader).unwrap().is_ok());
}

#[test]
fn two_pins_being_filled_do_not_wait_for_one_another() {
    let (mut b, file) = Bench::new(8, 1);
    let held = b.granted(1, pin(file, 0..100, Mode::Write));
    // Another's change of the page's tail: it has to be fetched, after the holder is gone.
    b.now = at(3000, 2);
    b.done(9, Request::Resize { file, bytes: 3000 });
    let two = b.submit(2, pin(file, 200..300, Mode::Write));
    let three = b.submit(3, pin(file, 400..500, Mode::Write));
    assert_eq!(b.run(two), None);
    assert_eq!(b.run(three), None, "not refused as a deadlock");
    b.done(1, Request::Release { pin: held, keep: false });
    assert!(b.run(two).unwrap().is_ok());
    assert!(b.run(three).unwrap().is_ok());
}
