//! What every cell may show.
//!
//! A cell's history lists the values that were ever given to it, in order; `floor` is where the
//! newest one stands whose giving was complete. Whoever begins to read now may see that one or any
//! later one, and nothing else.

use std::collections::BTreeMap;
use std::ops::Range;

use pageferry_engine::FileKey;

use crate::twins::{CELL, FILE_MAX, cells};

#[derive(Clone)]
pub struct Cell {
    history: Vec<u32>,
    floor: usize,
    /// Somebody is giving it a value.
    pub writer: bool,
}

#[derive(Default)]
pub struct Model {
    files: BTreeMap<FileKey, Vec<Cell>>,
}

impl Model {
    pub fn add(&mut self, file: FileKey) {
        let cell = Cell { history: vec![0], floor: 0, writer: false };
        self.files.insert(file, vec![cell; cells(&(0..FILE_MAX)).end]);
    }

    /// The file is known by another name.
    pub fn rename(&mut self, from: FileKey, to: FileKey) {
        if let Some(cells) = self.files.remove(&from) {
            self.files.insert(to, cells);
        }
    }

    fn cell(&mut self, file: FileKey, at: u64) -> &mut Cell {
        &mut self.files.get_mut(&file).expect("a known file")[(at / CELL) as usize]
    }

    /// Nobody is writing any of the cells.
    pub fn is_free(&self, file: FileKey, range: &Range<u64>) -> bool {
        self.files[&file][cells(range)].iter().all(|c| !c.writer)
    }

    pub fn claim(&mut self, file: FileKey, range: &Range<u64>, writing: bool) {
        for cell in &mut self.files.get_mut(&file).expect("a known file")[cells(range)] {
            cell.writer = writing;
        }
    }

    /// From now on the value may be seen.
    pub fn begin(&mut self, file: FileKey, at: u64, value: u32) {
        self.cell(file, at).history.push(value);
    }

    /// From now on nothing older than the last of this value may be seen.
    pub fn complete(&mut self, file: FileKey, at: u64, value: u32) {
        let cell = self.cell(file, at);
        let last = cell.history.iter().rposition(|v| *v == value).expect("it was begun");
        cell.floor = cell.floor.max(last);
    }

    /// What a reader who begins now holds what it sees against.
    pub fn floors(&self, file: FileKey, range: &Range<u64>) -> Vec<usize> {
        self.files[&file][cells(range)].iter().map(|c| c.floor).collect()
    }

    /// Judges what a reader saw.
    pub fn judge(&self, file: FileKey, at: u64, floor: usize, seen: u32, who: &str) {
        let cell = &self.files[&file][(at / CELL) as usize];
        assert!(
            cell.history[floor..].contains(&seen),
            "{who}: {file:?} at {at} shows {seen}, not one of {:?} (older: {:?})",
            &cell.history[floor..],
            &cell.history[..floor]
        );
    }
}
