//! Requests that keep the form and nothing else, from several sessions at once.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::*;
use crate::raw::*;
use pageferry_wire::*;

fn some_range(dice: &mut Dice) -> Span {
    let start = match dice.roll(8) {
        0 => u64::MAX - dice.roll(1 << 17),
        1 => dice.roll(1 << 50),
        _ => dice.roll(FILE + FRAME),
    };
    let len = [dice.roll(8192), dice.roll(2 * FRAME), u64::MAX][dice.roll(3) as usize];
    span(start..start.saturating_add(len))
}

fn some_request(dice: &mut Dice) -> Request {
    let (file, pin) = (FileId(dice.roll(40)), PinId(dice.roll(200)));
    let range = some_range(dice);
    let owner = [None, Some(1), Some(2)][dice.roll(3) as usize];
    let mode = [Mode::Read, Mode::Write, Mode::Overwrite][dice.roll(3) as usize];
    let after = [After::WriteBack, After::KeepAway][dice.roll(2) as usize];
    let wait = [Wait::Try, Wait::Timeout(Duration::from_millis(1))][dice.roll(2) as usize];
    let pins: Vec<PinId> = (0..dice.roll(5)).map(|_| PinId(dice.roll(200))).collect();
    let change = match dice.roll(7) {
        0 => Change::SetLen(dice.roll(2 * FILE)),
        1 => Change::PunchHole(range),
        2 => Change::ZeroRange { span: range, keep_size: true },
        3 => Change::Allocate { span: range, keep_size: true },
        4 => Change::CollapseRange(range),
        _ => Change::Write { offset: dice.roll(FILE), bytes: vec![1; dice.roll(5000) as usize] },
    };
    match dice.roll(20) {
        0 => Request::Close { file },
        1 => Request::Len { file },
        2..6 => Request::Pin { file, ranges: vec![range], mode, wait, owner },
        6 => Request::SetOwner { pin, owner },
        7 | 8 => Request::Release {
            pins: pins.into_iter().map(|pin| Release { pin, after }).collect(),
            stores: None,
        },
        9 => Request::Frames {
            pin,
            first_folio: range.start() / FRAME,
            known: vec![0; 1 + dice.roll(64) as usize],
        },
        10 => Request::Fault { pin, at: range.start() },
        11 => Request::Read { file, offset: range.start(), bytes: dice.roll(61440) as u32, owner },
        12 => Request::Change { file, change, owner },
        13 => Request::Flush { file, span: range, owner },
        14 => Request::Prefetch { file, span: range },
        15 => Request::Evict { file, span: range },
        16 => Request::Placement { file, span: range },
        17 => Request::Coherence { file },
        18 => Request::Sessions { after: dice.roll(10) },
        _ => Request::FlushAll { owner },
    }
}

/// One session after another, until the time is over. Requests answered.
fn attack(socket: &Path, path: &Path, seed: u64, until: Instant) -> usize {
    let (mut dice, mut answered) = (Dice(seed), 0);
    while Instant::now() < until {
        let mut raw = Raw::greeted(socket);
        for _ in 0..dice.roll(400) {
            let opens = dice.roll(20) == 0;
            if opens && dice.roll(2) == 0 {
                raw.open(path, dice.roll(2) == 0);
            } else {
                raw.send(some_request(&mut dice), &[]);
                // What waits for others' pins may wait for ever, as they may for its own: the session goes instead.
                if !raw.is_answered(Duration::from_millis(50)) {
                    break;
                }
                let _ = raw.next();
            }
            answered += 1;
        }
    }
    answered
}

#[test]
fn any_requests_at_all_leave_others_right() {
    alone(120, || {
        let d = daemon(8);
        let path = d.file("a");
        let seconds = std::env::var("DAEMON_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
        let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(4));
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = std::env::var("DAEMON_FUZZ_SEED").ok().and_then(|s| s.parse().ok());
        let seed: u64 = seed.unwrap_or(now) | 1;
        println!("DAEMON_FUZZ_SEED={seed}");
        std::thread::scope(|scope| {
            let (socket, path) = (&d.socket, &path);
            let attackers: Vec<_> = (0..4)
                .map(|n| scope.spawn(move || attack(socket, path, seed.wrapping_add(2 * n), end)))
                .collect();
            while Instant::now() < end {
                d.serves();
            }
            let answered: usize = attackers.into_iter().map(|a| a.join().unwrap()).sum();
            println!("{answered} requests");
        });
        d.ends_clean();
    });
}
