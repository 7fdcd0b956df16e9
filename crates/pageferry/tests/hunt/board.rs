//! What is published out of band: shared memory that has nothing to do with the file hunted.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::layout::{OWN, SLOTS, Slot, WAYS, Way};
use crate::memory::Mapping;

const STOP: usize = 0;
/// The longest that anybody has waited for an open, in microseconds.
const LONGEST: usize = 1;
/// What the hunter's device has released of its own words.
const RELEASED: usize = 2;
/// Three words for each slot: the last change complete, the last begun, the last zeroing begun.
const NUMBERS: usize = RELEASED + OWN.len();
const TALLY: usize = NUMBERS + 3 * SLOTS;
const WORDS: usize = TALLY + WAYS.len();

pub struct Board(Mapping);

/// A change that is complete: its number, whether it zeroed, and how it was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change(u64);

impl Change {
    pub fn new(number: u64, zero: bool, way: Way) -> Change {
        Change(number << 8 | (way as u64) << 1 | u64::from(zero))
    }

    pub fn number(self) -> u64 {
        self.0 >> 8
    }

    fn zeroed(self) -> bool {
        self.0 & 1 == 1
    }

    pub fn way(self) -> &'static str {
        Way::name((self.0 as u8 >> 1).into())
    }
}

impl Board {
    pub fn create(path: &Path) -> io::Result<Board> {
        std::fs::write(path, vec![0; WORDS * 8])?;
        Board::open(path)
    }

    pub fn open(path: &Path) -> io::Result<Board> {
        let file = std::fs::File::options().read(true).write(true).open(path)?;
        Ok(Board(Mapping::new(&file, 0, WORDS * 8, true)?))
    }

    fn word(&self, number: usize) -> &AtomicU64 {
        self.0.word(number * 8)
    }

    pub fn stop(&self) {
        self.word(STOP).store(1, SeqCst);
    }

    pub fn stopped(&self) -> bool {
        self.word(STOP).load(SeqCst) != 0
    }

    /// Opens a file and notes how long that took: who holds a lease could make others wait.
    pub fn timed<T>(&self, open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let started = Instant::now();
        let opened = open();
        let took = started.elapsed().as_micros() as u64;
        self.word(LONGEST).fetch_max(took, SeqCst);
        opened
    }

    pub fn longest_open(&self) -> Duration {
        Duration::from_micros(self.word(LONGEST).load(SeqCst))
    }

    pub fn count(&self, way: Way) {
        self.word(TALLY + way as usize).fetch_add(1, SeqCst);
    }

    /// How often each way was gone.
    pub fn tally(&self) -> Vec<(&'static str, u64)> {
        WAYS.iter()
            .map(|(way, name)| (*name, self.word(TALLY + *way as usize).load(SeqCst)))
            .collect()
    }

    pub fn release(&self, own: usize, value: u64) {
        self.word(RELEASED + own).store(value, SeqCst);
    }

    pub fn released(&self, own: usize) -> u64 {
        self.word(RELEASED + own).load(SeqCst)
    }

    /// A change begins.
    pub fn begin(&self, slot: Slot, number: u64, zero: bool) {
        self.word(NUMBERS + 3 * slot.number() + 1).store(number, SeqCst);
        if zero {
            self.word(NUMBERS + 3 * slot.number() + 2).store(number, SeqCst);
        }
    }

    /// It is complete.
    pub fn publish(&self, slot: Slot, change: Change) {
        self.word(NUMBERS + 3 * slot.number()).store(change.0, SeqCst);
    }

    pub fn published(&self, slot: Slot) -> Change {
        Change(self.word(NUMBERS + 3 * slot.number()).load(SeqCst))
    }

    /// May somebody who looked after `before` was published, and before now, have seen this?
    pub fn allows(&self, slot: Slot, before: Change, seen: u64) -> bool {
        let begun = self.word(NUMBERS + 3 * slot.number() + 1).load(SeqCst);
        let zeroing = self.word(NUMBERS + 3 * slot.number() + 2).load(SeqCst);
        let number = before.number();
        match seen {
            0 => number == 0 || before.zeroed() || zeroing > number,
            _ => (number..=begun).contains(&seen),
        }
    }
}
