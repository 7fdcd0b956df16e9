//! Twins of what the engine's actions touch: files, a device, mappings. A cell is 512 bytes: the
//! grain at which this world stores values and places pins and ends of file.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use pageferry_engine::range::RangeMap;
use pageferry_engine::{FileKey, FrameId, MapKey, Observed, PAGE_BYTES};

pub const CELL: u64 = 512;
pub const FRAME: u64 = 4 * PAGE_BYTES;
/// No file of this world gets larger.
pub const FILE_MAX: u64 = 6 * FRAME;

/// The values of the cells of a range.
pub fn cells(range: &Range<u64>) -> Range<usize> {
    (range.start / CELL) as usize..(range.end / CELL) as usize
}

pub fn pages(range: &Range<u64>) -> impl Iterator<Item = u64> {
    range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES)
}

pub struct TwinMap {
    pub range: Range<u64>,
    pub writable: bool,
    pub trapped: BTreeSet<u64>,
    /// Pages stored to, or not tracked, since the last scan.
    pub stored: BTreeSet<u64>,
}

pub struct TwinFile {
    pub cells: Vec<u32>,
    pub bytes: u64,
    /// Changes by others.
    epoch: u64,
    /// The last that could have been anywhere, and the last of each known part.
    whole: u64,
    parts: RangeMap<u64>,
    pub maps: BTreeMap<MapKey, TwinMap>,
    /// Frames attached, by folio.
    pub attached: BTreeMap<u64, FrameId>,
}

impl TwinFile {
    pub fn new(bytes: u64) -> TwinFile {
        let cells = vec![0; cells(&(0..FILE_MAX)).end];
        TwinFile {
            cells,
            bytes,
            epoch: 0,
            whole: 0,
            parts: RangeMap::new(),
            maps: BTreeMap::new(),
            attached: BTreeMap::new(),
        }
    }

    /// Others have changed a part of it, or nobody knows which.
    pub fn changed(&mut self, part: Option<Range<u64>>) {
        self.epoch += 1;
        match part {
            Some(part) => self.parts.insert(part, self.epoch),
            None => self.whole = self.epoch,
        }
    }

    pub fn observe(&self, since: u64) -> Observed {
        let changed = self.parts.iter().filter(|(_, epoch)| **epoch > since);
        let parts = (self.whole <= since).then(|| changed.map(|(part, _)| part).collect());
        Observed { bytes: self.bytes, epoch: self.epoch, parts }
    }

    pub fn resize(&mut self, bytes: u64) {
        let gone = bytes.min(self.bytes)..FILE_MAX;
        self.cells[cells(&gone)].fill(0);
        self.bytes = bytes;
    }
}

/// One frame: its cells, and which of its pages kernels have stored to.
#[derive(Clone)]
pub struct TwinFrame {
    pub cells: Vec<u32>,
    pub dirty: BTreeSet<u64>,
    /// Pages that kernels can reach.
    pub present: BTreeSet<u64>,
    pub used: bool,
}

pub struct Twins {
    pub files: BTreeMap<FileKey, TwinFile>,
    pub frames: Vec<TwinFrame>,
}

impl Twins {
    pub fn new(frames: usize) -> Twins {
        let garbage = vec![0xBAD; cells(&(0..FRAME)).end];
        let frame = TwinFrame {
            cells: garbage,
            dirty: BTreeSet::new(),
            present: BTreeSet::new(),
            used: false,
        };
        Twins { files: BTreeMap::new(), frames: vec![frame; frames] }
    }

    /// Where a cell of a file is on the device.
    fn place(&self, file: FileKey, at: u64) -> Option<(usize, usize)> {
        let frame = self.files.get(&file)?.attached.get(&(at / FRAME))?;
        Some((frame.0 as usize, (at % FRAME / CELL) as usize))
    }

    pub fn is_present(&self, file: FileKey, at: u64) -> bool {
        let page = at % FRAME / PAGE_BYTES;
        self.place(file, at).is_some_and(|(frame, _)| self.frames[frame].present.contains(&page))
    }

    pub fn is_marked(&self, file: FileKey, at: u64) -> bool {
        let page = at % FRAME / PAGE_BYTES;
        self.place(file, at).is_some_and(|(frame, _)| self.frames[frame].dirty.contains(&page))
    }

    /// Kernels can reach pages, or no longer.
    pub fn show(&mut self, file: FileKey, range: &Range<u64>, present: bool) {
        for page in pages(range) {
            let Some((frame, _)) = self.place(file, page * PAGE_BYTES) else { continue };
            let (set, page) = (&mut self.frames[frame].present, page % (FRAME / PAGE_BYTES));
            if present {
                set.insert(page)
            } else {
                set.remove(&page)
            };
        }
    }

    /// A kernel's load.
    pub fn device_load(&self, file: FileKey, at: u64) -> u32 {
        let (frame, cell) = self.place(file, at).expect("a kernel loads where nothing is attached");
        self.frames[frame].cells[cell]
    }

    /// A kernel's store.
    pub fn device_store(&mut self, file: FileKey, at: u64, value: u32) {
        let (frame, cell) =
            self.place(file, at).expect("a kernel stores where nothing is attached");
        self.frames[frame].cells[cell] = value;
        self.frames[frame].dirty.insert(at % FRAME / PAGE_BYTES);
    }

    /// Copies cells of a page between file and frame.
    pub fn copy(&mut self, file: FileKey, frame: FrameId, range: &Range<u64>, home: bool) {
        let state = self.files.get_mut(&file).expect("a known file");
        let device = &mut self.frames[frame.0 as usize].cells;
        for at in (range.start..range.end).step_by(CELL as usize) {
            let (cell, there) = ((at / CELL) as usize, (at % FRAME / CELL) as usize);
            if !home {
                // Past the end of the file there are zeros.
                device[there] = if at < state.bytes { state.cells[cell] } else { 0 };
            } else if at < state.bytes {
                state.cells[cell] = device[there];
            }
        }
    }

    /// Pages of a range that kernels stored to; their marks are taken.
    pub fn take_dirty(&mut self, file: FileKey, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        let Some(state) = self.files.get(&file) else { return runs };
        for page in pages(range) {
            let at = page * PAGE_BYTES;
            let Some(frame) = state.attached.get(&(at / FRAME)) else { continue };
            if self.frames[frame.0 as usize].dirty.remove(&(at % FRAME / PAGE_BYTES)) {
                runs.push(at..at + PAGE_BYTES);
            }
        }
        runs
    }
}
