//! A process that only looks: each time it opens the file it must see what had been released before.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::board::Board;
use crate::common::Dice;
use crate::layout::{FAR, OWN, PAGE, Way};
use crate::memory::Mapping;

pub fn run(board: &Board, path: &Path, seed: u64) {
    let mut dice = Dice(seed);
    while !board.stopped() {
        look(board, path, &mut dice);
        if dice.roll(4) != 0 {
            std::thread::sleep(Duration::from_micros(dice.roll(4000)));
        }
    }
}

fn look(board: &Board, path: &Path, dice: &mut Dice) {
    let own = dice.roll(OWN.len() as u64) as usize;
    let before = board.released(own);
    let file = board.timed(|| File::open(path)).unwrap();
    let (seen, way) = if dice.roll(2) == 0 {
        let map = Mapping::new(&file, 0, ((FAR + 1) * PAGE) as usize, false).unwrap();
        drop(file);
        (map.word(OWN[own] as usize).load(SeqCst), Way::LookMapped)
    } else {
        // Nothing is kept away while it is open: what is released from now on is seen, too.
        let late = dice.roll(2) == 0;
        let before_late = board.released(own);
        let mut word = [0; 8];
        file.read_exact_at(&mut word, OWN[own]).unwrap();
        let seen = u64::from_le_bytes(word);
        if late {
            assert!(seen >= before_late, "an outsider saw {seen} after {before_late} was released");
        }
        (seen, if late { Way::LookLate } else { Way::Look })
    };
    board.count(way);
    assert!(seen >= before, "an outsider saw {seen} by {way:?} after {before} was released");
}
