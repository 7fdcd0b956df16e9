//! A process that only looks: each time it opens the file, and each time it reads from a descriptor that
//! it has, it must see what had been released before.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::board::Board;
use crate::common::Dice;
use crate::layout::{FAR, OWN, PAGE, Way};
use crate::memory::{Mapping, Page};

struct Onlooker<'b> {
    board: &'b Board,
    path: PathBuf,
    dice: Dice,
}

pub fn run(board: &Board, path: &Path, seed: u64) {
    let mut onlooker = Onlooker { board, path: path.to_owned(), dice: Dice(seed) };
    while !board.stopped() {
        onlooker.look();
        if onlooker.dice.roll(4) != 0 {
            onlooker.sleep(4000);
        }
    }
}

impl Onlooker<'_> {
    fn sleep(&mut self, micros: u64) {
        std::thread::sleep(Duration::from_micros(self.dice.roll(micros)));
    }

    fn own(&mut self) -> usize {
        self.dice.roll(OWN.len() as u64) as usize
    }

    fn look(&mut self) {
        match self.dice.roll(8) {
            0..3 => self.once(Way::LookMapped, 0, |file, at| {
                let map = Mapping::new(&file, 0, ((FAR + 1) * PAGE) as usize, false)?;
                drop(file);
                Ok(map.word(at as usize).load(SeqCst))
            }),
            3..5 => self.once(Way::Look, 0, |file, at| word(&file, at)),
            5 => self.once(Way::LookDirect, libc::O_DIRECT, |file, at| {
                let mut page = Page::new();
                file.read_exact_at(&mut page.0, at / PAGE * PAGE)?;
                Ok(page.word((at % PAGE) as usize))
            }),
            6 => self.again(Way::LookLate, 1),
            _ => self.again(Way::LookAgain, 10),
        }
    }

    /// What was released before the open is seen after it.
    fn once(&mut self, way: Way, flags: i32, see: impl FnOnce(File, u64) -> io::Result<u64>) {
        let own = self.own();
        let before = self.board.released(own);
        let mut options = File::options();
        options.read(true).custom_flags(flags);
        let file = self.board.timed(|| options.open(&self.path)).unwrap();
        let seen = see(file, OWN[own]).unwrap();
        self.judge(way, seen, before);
    }

    /// Whatever is released while the descriptor is there is seen through it: nothing is kept away from
    /// it, or else each of its reads waits.
    fn again(&mut self, way: Way, times: u64) {
        let file = self.board.timed(|| File::open(&self.path)).unwrap();
        for _ in 0..times {
            self.sleep(500);
            let own = self.own();
            let before = self.board.released(own);
            self.judge(way, word(&file, OWN[own]).unwrap(), before);
        }
    }

    fn judge(&self, way: Way, seen: u64, before: u64) {
        self.board.count(way);
        assert!(seen >= before, "an outsider saw {seen} by {way:?} after {before} was released");
    }
}

fn word(file: &File, at: u64) -> io::Result<u64> {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, at)?;
    Ok(u64::from_le_bytes(word))
}
