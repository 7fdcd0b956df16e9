//! A process that changes the file, in episodes: it opens the file in some way, makes a few changes,
//! and goes, or leaves a mapping behind.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime};

use rustix::fs::FallocateFlags;

use crate::board::{Board, Change};
use crate::common::Dice;
use crate::layout::{FILE_BYTES, KINDS, Kind, PAGE, Slot, TAIL, Way};
use crate::memory::{Mapping, Page, sync_file_range, truncate};

struct Writer<'b> {
    board: &'b Board,
    path: PathBuf,
    id: usize,
    dice: Dice,
    numbers: [u64; KINDS],
    /// A mapping kept from an earlier episode, and of which slot's page.
    kept: Option<(Mapping, Slot)>,
}

pub fn run(board: &Board, path: PathBuf, id: usize, seed: u64) {
    let mut writer = Writer { board, path, id, dice: Dice(seed), numbers: [0; KINDS], kept: None };
    while !board.stopped() {
        writer.episode().unwrap_or_else(|error| panic!("writer {id}: {error}"));
        writer.pause();
    }
}

/// All writers change together how they go on, or some mapping would stand in the way of all proofs.
enum Season {
    Busy,
    /// Mappings stay; the rest is calm.
    Kept,
    Calm,
}

impl Season {
    fn now() -> Season {
        // A clock that they share. Where it fails, they are busy.
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        match now.as_millis() / 50 % 6 {
            0 => Season::Busy,
            1 => Season::Kept,
            _ => Season::Calm,
        }
    }
}

impl Writer<'_> {
    fn slot(&self, kind: Kind) -> Slot {
        Slot { writer: self.id, kind }
    }

    fn shared_slot(&mut self) -> Slot {
        let kind = if self.dice.roll(2) == 0 { Kind::Near } else { Kind::Far };
        self.slot(kind)
    }

    /// Before the next episode. Short ones race; after long ones the file can be proven for a while, and
    /// the next change meets copies that are used again.
    fn pause(&mut self) {
        match (Season::now(), self.dice.roll(4)) {
            (Season::Busy, 0) => {}
            (Season::Busy, 1) => self.spin(),
            (Season::Busy, _) => self.sleep(1000),
            (Season::Kept, _) => self.sleep(5000),
            (Season::Calm, _) => {
                self.kept = None;
                self.sleep(12_000);
            }
        }
    }

    fn sleep(&mut self, micros: u64) {
        std::thread::sleep(Duration::from_micros(self.dice.roll(micros)));
    }

    fn spin(&mut self) {
        for _ in 0..self.dice.roll(2000) {
            std::hint::spin_loop();
        }
    }

    /// Makes one change and publishes it when it is complete.
    fn change(
        &mut self,
        slot: Slot,
        way: Way,
        zero: bool,
        make: impl FnOnce(&mut Self, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let number = self.numbers[slot.kind as usize] + 1;
        self.numbers[slot.kind as usize] = number;
        self.board.begin(slot, number, zero);
        make(self, number)?;
        self.board.publish(slot, Change::new(number, zero, way));
        self.board.count(way);
        Ok(())
    }

    /// The file, by its name. Who does not want to wait for a lease tries again.
    fn open(&mut self, flags: i32) -> io::Result<File> {
        let hasty = self.dice.roll(8) == 0;
        let mut options = File::options();
        let nonblock = if hasty { libc::O_NONBLOCK } else { 0 };
        options.read(true).write(true).custom_flags(flags | nonblock);
        match self.board.timed(|| options.open(&self.path)) {
            Err(error) if hasty && error.raw_os_error() == Some(libc::EAGAIN) => {
                self.board.count(Way::Refused);
                self.board.timed(|| options.custom_flags(flags).open(&self.path))
            }
            result => result,
        }
    }

    /// Nobody else changes this slot: what it was set to last is there.
    fn ensure_kept(&self, file: &File, slot: Slot) -> io::Result<()> {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, slot.at())?;
        let (seen, made) = (u64::from_le_bytes(word), self.numbers[slot.kind as usize]);
        assert_eq!(seen, made, "the last change at {slot:?} was undone");
        Ok(())
    }

    fn episode(&mut self) -> io::Result<()> {
        let changes = 1 + self.dice.roll(20);
        match self.dice.roll(20) {
            0..4 => self.write(changes),
            4..10 => self.store(changes),
            10..12 => self.store_through_kept(changes),
            12..14 => self.write_directly(changes),
            14..17 => self.punch(changes),
            17 if self.id == 0 => self.cut(changes),
            18 => {
                let file = self.open(0)?;
                self.board.count(Way::Hold);
                self.sleep(1000);
                drop(file);
                Ok(())
            }
            _ => {
                let file = self.board.timed(|| File::open(&self.path))?;
                self.board.count(Way::Visit);
                if self.dice.roll(2) == 0 {
                    self.sleep(1000);
                }
                drop(file);
                Ok(())
            }
        }
    }

    fn write(&mut self, changes: u64) -> io::Result<()> {
        let file = self.open(0)?;
        let slot = self.shared_slot();
        for _ in 0..changes {
            match self.dice.roll(4) {
                0 => self.copy_in(&file, slot)?,
                1 => self.splice_in(&file, slot)?,
                _ => self.change(slot, Way::Write, false, |_, n| {
                    file.write_all_at(&n.to_le_bytes(), slot.at())
                })?,
            }
            self.spin();
        }
        self.ensure_kept(&file, slot)
    }

    /// By the kernel, from another file.
    fn copy_in(&mut self, file: &File, slot: Slot) -> io::Result<()> {
        let source = tempfile::tempfile_in(self.path.parent().unwrap_or(&self.path))?;
        self.change(slot, Way::CopyRange, false, |_, n| {
            source.write_all_at(&n.to_le_bytes(), 0)?;
            let (mut from, mut to) = (0, slot.at());
            let copied =
                rustix::fs::copy_file_range(&source, Some(&mut from), file, Some(&mut to), 8)?;
            assert_eq!(copied, 8, "copy_file_range");
            Ok(())
        })
    }

    fn splice_in(&mut self, file: &File, slot: Slot) -> io::Result<()> {
        let (out, into) = rustix::pipe::pipe()?;
        self.change(slot, Way::Splice, false, |_, n| {
            rustix::io::write(&into, &n.to_le_bytes())?;
            let mut to = slot.at();
            let flags = rustix::pipe::SpliceFlags::empty();
            let moved = rustix::pipe::splice(&out, None, file, Some(&mut to), 8, flags)?;
            assert_eq!(moved, 8, "splice");
            Ok(())
        })
    }

    /// Through a mapping made for it, the descriptor open or closed.
    fn store(&mut self, changes: u64) -> io::Result<()> {
        let file = self.open(0)?;
        let slot = self.shared_slot();
        let late = self.dice.roll(4) == 0;
        let map = Mapping::new(&file, slot.page(), PAGE as usize, !late)?;
        let keep_open = self.dice.roll(3) == 0;
        let open = keep_open.then_some(file);
        if late {
            self.spin();
            map.make_writable()?;
        }
        let way = match (late, open.is_some()) {
            (true, _) => Way::MapProtected,
            (false, true) => Way::MapOpen,
            (false, false) => Way::MapClosed,
        };
        self.store_to(&map, slot, way, changes, open.as_ref())?;
        if self.dice.roll(3) == 0 {
            // The earlier one goes.
            self.kept = Some((map, slot));
        }
        Ok(())
    }

    fn store_through_kept(&mut self, changes: u64) -> io::Result<()> {
        let Some((map, slot)) = self.kept.take() else { return Ok(()) };
        self.store_to(&map, slot, Way::MapOld, changes, None)?;
        if self.dice.roll(3) != 0 {
            self.kept = Some((map, slot));
        }
        Ok(())
    }

    fn store_to(
        &mut self,
        map: &Mapping,
        slot: Slot,
        way: Way,
        changes: u64,
        open: Option<&File>,
    ) -> io::Result<()> {
        let word = map.word((slot.at() - slot.page()) as usize);
        for _ in 0..changes {
            assert_eq!(
                word.load(SeqCst),
                self.numbers[slot.kind as usize],
                "the last change at {slot:?} was undone"
            );
            self.change(slot, way, false, |_, n| {
                word.store(n, SeqCst);
                Ok(())
            })?;
            self.clean(map, slot, open)?;
            self.spin();
        }
        Ok(())
    }

    /// Makes the kernel write the page now and then, so that the next store dirties it anew.
    fn clean(&mut self, map: &Mapping, slot: Slot, open: Option<&File>) -> io::Result<()> {
        match (self.dice.roll(60), open) {
            (0, _) => {
                self.board.count(Way::Msync);
                map.sync(self.dice.roll(2) == 0)?;
            }
            (1..5, Some(file)) => {
                self.board.count(Way::SyncRange);
                sync_file_range(file, slot.page(), PAGE);
            }
            (5, Some(file)) => {
                self.board.count(Way::Fsync);
                file.sync_data()?;
            }
            (6, None) => {
                let file = self.open(0)?;
                self.board.count(Way::SyncRange);
                sync_file_range(&file, slot.page(), PAGE);
            }
            _ => {}
        }
        Ok(())
    }

    /// Past the page cache, whole pages of its own.
    fn write_directly(&mut self, changes: u64) -> io::Result<()> {
        let file = self.open(libc::O_DIRECT)?;
        let slot = self.slot(Kind::Direct);
        let mut page = Page::new();
        for _ in 0..changes.min(4) {
            self.change(slot, Way::Direct, false, |_, n| {
                page.fill(n);
                file.write_all_at(&page.0, slot.at())
            })?;
            self.spin();
        }
        Ok(())
    }

    /// A page of its own: written, stored to, and made a hole.
    fn punch(&mut self, changes: u64) -> io::Result<()> {
        let file = self.open(0)?;
        let slot = self.slot(Kind::Hole);
        let map = match self.dice.roll(2) {
            0 => Some(Mapping::new(&file, slot.page(), PAGE as usize, true)?),
            _ => None,
        };
        for _ in 0..changes {
            let mode = match self.dice.roll(4) {
                0 => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                1 => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                _ => {
                    self.fill(&file, map.as_ref(), slot)?;
                    continue;
                }
            };
            let zeroing = mode.contains(FallocateFlags::ZERO_RANGE);
            let way = if zeroing { Way::ZeroRange } else { Way::Punch };
            self.change(slot, way, true, |_, _| {
                match rustix::fs::fallocate(&file, mode, slot.page(), PAGE) {
                    // Where there is no such thing, zeros are written.
                    Err(rustix::io::Errno::OPNOTSUPP) => file.write_all_at(&[0; 4096], slot.page()),
                    result => Ok(result?),
                }
            })?;
            self.spin();
        }
        Ok(())
    }

    fn fill(&mut self, file: &File, map: Option<&Mapping>, slot: Slot) -> io::Result<()> {
        match map {
            Some(map) if self.dice.roll(2) == 0 => {
                self.change(slot, Way::HoleStore, false, |_, n| {
                    map.word(0).store(n, SeqCst);
                    Ok(())
                })
            }
            _ => self.change(slot, Way::HoleWrite, false, |_, n| {
                file.write_all_at(&n.to_le_bytes(), slot.at())
            }),
        }
    }

    /// The file's last page, cut off whole or in its middle, by descriptor or by name, and made again.
    fn cut(&mut self, changes: u64) -> io::Result<()> {
        let slot = self.slot(Kind::Tail);
        let name = CString::new(self.path.as_os_str().as_encoded_bytes())?;
        for _ in 0..changes {
            let bytes = TAIL * PAGE + [0, 1000, 2048][self.dice.roll(3) as usize];
            if self.dice.roll(3) == 0 {
                self.change(slot, Way::CutByName, true, |_, _| truncate(&name, bytes))?;
                if self.dice.roll(2) == 0 {
                    truncate(&name, FILE_BYTES)?;
                }
                continue;
            }
            let file = self.open(0)?;
            self.change(slot, Way::Cut, true, |_, _| file.set_len(bytes))?;
            self.spin();
            if self.dice.roll(3) == 0 {
                file.set_len(FILE_BYTES)?;
                self.spin();
            }
            self.change(slot, Way::Extend, false, |_, n| {
                file.write_all_at(&n.to_le_bytes(), slot.at())
            })?;
        }
        Ok(())
    }
}
