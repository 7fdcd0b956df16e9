//! What kernels do under pins, and what pins go through meanwhile.

use std::ops::Range;

use pageferry_engine::{FileKey, Mode, PAGE_BYTES, PinKey};

use crate::actors::World;
use crate::twins::{CELL, FRAME};

/// What is stored behind a cut.
const STRAY: u32 = 0x57A4;

impl World {
    /// A pin may change hands.
    pub(crate) fn give_pin(&mut self, pin: PinKey) {
        if self.dice.roll(6) == 0 {
            let owner = self.dice.roll(self.actors.len() as u64 * 2) as u32;
            self.engine.set_owner(
                pin,
                Some(owner).filter(|o| (*o as usize) < self.actors.len()).map(u64::from),
            );
        }
    }

    /// Where a pin ends for having been cut.
    pub(crate) fn cut(&self, pin: PinKey) -> u64 {
        self.engine.pin_cut(pin).unwrap_or(u64::MAX)
    }

    /// Kernels load all that a pin holds.
    pub(crate) fn load_pin(
        &mut self,
        pin: PinKey,
        file: FileKey,
        range: &Range<u64>,
        mode: Mode,
        stores: &[(u64, u32)],
        floors: &[usize],
    ) {
        let known = self.engine.file_bytes(file).unwrap_or(0);
        let end = self.cut(pin).min(self.twins.files[&file].bytes).min(range.end);
        for (n, at) in (range.start..end.min(known)).step_by(CELL as usize).enumerate() {
            if !self.twins.is_present(file, at) {
                assert!(self.failures > 0, "a pinned page at {at} of {file:?} is hidden");
                continue;
            }
            let seen = self.twins.device_load(file, at);
            if let Some((_, value)) = stores.iter().find(|(a, _)| *a == at) {
                assert_eq!(seen, *value, "a store under the pin at {at} of {file:?} is gone");
            } else if mode != Mode::Overwrite {
                self.model.judge(file, at, floors[n], seen, "a held pin");
            }
        }
    }

    /// Kernels know nothing of a cut: where another pin has made a page writable again, they store to it.
    /// No such store may ever show.
    pub(crate) fn stray(&mut self, pin: PinKey, file: FileKey, range: &Range<u64>, mode: Mode) {
        let cut_off = self.cut(pin).clamp(range.start, range.end)..range.end;
        if !mode.writes() || cut_off.is_empty() {
            return;
        }
        let at = cut_off.start + self.dice.roll((cut_off.end - cut_off.start) / CELL) * CELL;
        if self.twins.is_present(file, at) && self.twins.is_marked(file, at) {
            self.say(|| format!("a stray store of {pin:?} at {at} of {file:?}"));
            self.twins.device_store(file, at, STRAY);
        }
    }

    /// Kernels at work under a pin.
    pub(crate) fn use_pin(
        &mut self,
        pin: PinKey,
        file: FileKey,
        range: &Range<u64>,
        mode: Mode,
        stores: &mut Vec<(u64, u32)>,
    ) {
        // What is stored past the end of the file is dropped, and that the file has grown behind its
        // back the engine need not know yet.
        let known = self.engine.file_bytes(file).unwrap_or(0);
        let bytes = self.twins.files[&file].bytes.min(known).min(self.cut(pin));
        let inside = range.start..range.end.min(bytes);
        if !mode.writes() || inside.start >= inside.end {
            return;
        }
        let count = (inside.end - inside.start) / CELL;
        let at = inside.start + self.dice.roll(count) * CELL;
        if self.engine.frame(file, at / FRAME).is_none() {
            return;
        }
        // Overwriting zeroes pages: who stores to one stores to all of it that is pinned.
        let page = at / PAGE_BYTES * PAGE_BYTES;
        let cells = if mode == Mode::Overwrite {
            page.max(inside.start)..(page + PAGE_BYTES).min(inside.end)
        } else {
            at..at + CELL
        };
        // Once each: the page may have been stored to when less of it lay inside the file.
        if stores.iter().any(|(a, _)| cells.contains(a)) {
            return;
        }
        let value = self.value();
        for at in (cells.start..cells.end).step_by(CELL as usize) {
            self.twins.device_store(file, at, value);
            self.model.begin(file, at, value);
            stores.push((at, value));
        }
    }
}
