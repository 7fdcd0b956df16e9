//! Pins, held and passing.

use std::ops::Range;

use pageferry::{After, Pin, PinMode};

use super::{Done, World, unexpected};
use crate::difference::{Difference, Step};
use crate::op::{By, Mode};
use crate::ranges::{Ranges, clip, overlap, pages};
use crate::rng::fill_bytes;
use crate::settings::Known;

/// A pin that is held over several operations.
pub(crate) struct Held {
    pub(super) pin: Pin,
    pub(super) mode: Mode,
    pub(super) range: Range<u64>,
    /// Where it ends by now: the file's end at its grant, or a later, lower one.
    limit: u64,
    /// What the device has to see of a writing pin's range, up to the limit.
    shadow: Vec<u8>,
    /// What the device stored.
    stored: Ranges,
    /// Some of its pages were away when it was granted.
    pub(super) over_away: bool,
    /// The file was cut below its end; if an outsider did it, the cache may not know yet, and what
    /// a growth in between would show is nobody's business.
    was_cut: bool,
    pub(super) cut_by_outsider: bool,
    /// The cache's own cut dropped what had been stored: the release has to say so.
    lost: bool,
}

impl Held {
    pub(super) fn writes(&self) -> bool {
        self.mode != Mode::Read
    }

    /// What is left of it.
    pub(super) fn live(&self) -> Range<u64> {
        clip(&self.range, &(0..self.limit))
    }

    /// Whose pages others may have to wait for. What an outsider cut, the cache may not know of yet.
    pub(super) fn kept(&self) -> Range<u64> {
        if self.was_cut && !self.cut_by_outsider { self.live() } else { self.range.clone() }
    }

    /// The file was cut to `size`.
    pub(super) fn cut(&mut self, size: u64, by: By) {
        if size >= self.limit {
            return;
        }
        self.lost |= by == By::Cache && self.stored.intersects(&(size..u64::MAX));
        self.was_cut |= size < self.range.end;
        self.cut_by_outsider |= self.writes() && by != By::Cache && size < self.range.end;
        self.limit = size;
        self.stored.remove(size..u64::MAX);
    }

    fn shadow(&self, range: &Range<u64>) -> &[u8] {
        let at = |i: u64| (i - self.range.start) as usize;
        &self.shadow[at(range.start)..at(range.end)]
    }
}

impl World {
    /// Takes a pin if it is to be had; anything but the refusals that have to be is a difference.
    pub(super) fn take(&mut self, range: &Range<u64>, mode: Mode) -> Step<Option<Pin>> {
        let clashes = |p: &Held, held: &Range<u64>| {
            overlap(held, range) && (p.writes() || mode != Mode::Read)
        };
        let must_wait = self.pins.values().any(|p| clashes(p, &p.live()));
        // A page that has to be fetched anew waits for a write pin on it: nobody here knows which has.
        let may_wait =
            self.touches_write_pin(range) || self.pins.values().any(|p| clashes(p, &p.range));
        let past_end = range.end > self.size.next_multiple_of(4096);
        let pin_mode = match mode {
            Mode::Read => PinMode::Read,
            Mode::Write => PinMode::Write,
            Mode::Overwrite => PinMode::Overwrite,
        };
        match self.file()?.pin(range.clone(), pin_mode) {
            Ok(_) if must_wait => {
                let what = format!("{mode:?} pin of {range:x?} granted beside one of its bytes");
                Err(Difference::new("refusal", what).into())
            }
            Ok(_) if past_end => {
                let what = format!("pin of {range:x?} granted past the end at {:#x}", self.size);
                Err(Difference::new("refusal", what).into())
            }
            Ok(pin) => Ok(Some(pin)),
            Err(error) => match error.kind() {
                "would-deadlock" if may_wait => Ok(None),
                "past-eof" if past_end => Ok(None),
                "device-full" if self.fills_device(range) => Ok(None),
                _ => Err(unexpected(&format!("{mode:?} pin of {range:x?}"), &error).into()),
            },
        }
    }

    /// With what is pinned, a pin of the range needs more than the device has.
    pub(super) fn fills_device(&self, range: &Range<u64>) -> bool {
        let frame = self.settings.frame;
        let mut frames = Ranges::default();
        for r in self.pins.values().map(|p| &p.range).chain([range]) {
            frames.add(r.start / frame..r.end.div_ceil(frame));
        }
        let needed: u64 = frames.within(&(0..u64::MAX)).iter().map(|r| r.end - r.start).sum();
        needed > self.settings.memory / frame
    }

    pub(super) fn pin(&mut self, slot: u64, range: Range<u64>, mode: Mode) -> Step<Done> {
        if self.pins.contains_key(&slot) || range.is_empty() {
            return Ok(Done::Skipped);
        }
        let Some(pin) = self.take(&range, mode)? else { return Ok(Done::Refused) };
        let shadow = if mode == Mode::Read {
            Vec::new()
        } else {
            self.expected(&clip(&range, &(0..self.size)))?
        };
        let held = Held {
            pin,
            mode,
            limit: range.end.min(self.size),
            shadow,
            stored: Ranges::default(),
            over_away: mode != Mode::Read && self.away.intersects(&pages(&range)),
            range,
            was_cut: false,
            cut_by_outsider: false,
            lost: false,
        };
        self.pins.insert(slot, held);
        Ok(Done::Did)
    }

    /// What the device sees through a pin that is held.
    pub(super) fn device_load(&mut self, slot: u64, range: &Range<u64>) -> Step<Done> {
        let Some(held) = self.pins.get(&slot) else { return Ok(Done::Skipped) };
        let range = clip(range, &held.live());
        if range.is_empty() {
            return Ok(Done::Skipped);
        }
        if !held.writes() && !self.see(&range)? {
            // Without a later pin of the bytes, the old one may show what it was granted with.
            return Ok(Done::Refused);
        }
        let Some(held) = self.pins.get(&slot) else { return Ok(Done::Skipped) };
        // What an overwriting pin shows where nothing was stored is not promised.
        let parts = match held.mode {
            Mode::Overwrite => held.stored.within(&range),
            _ => vec![range],
        };
        let mut seen = Vec::new();
        for part in parts {
            let mut got = vec![0; (part.end - part.start) as usize];
            let view = held.pin.view().map_err(|e| unexpected("a view of a pin", &e))?;
            view.read(part.start, &mut got).map_err(|e| unexpected("a device load", &e))?;
            let expected =
                if held.writes() { held.shadow(&part).to_vec() } else { self.expected(&part)? };
            seen.push((part.start, expected, got));
        }
        for (at, expected, got) in seen {
            self.compare("device, held pin", at, &expected, &got)?;
        }
        Ok(Done::Did)
    }

    pub(super) fn device_store(&mut self, slot: u64, range: &Range<u64>, fill: u64) -> Step<Done> {
        self.stray(slot, range, fill)?;
        let Some(held) = self.pins.get_mut(&slot) else { return Ok(Done::Skipped) };
        let range = clip(&store_grain(range, held.mode), &held.live());
        if range.is_empty() || !held.writes() {
            return Ok(Done::Skipped);
        }
        let bytes = fill_bytes(fill, range.start, range.end - range.start);
        let view = held.pin.view().map_err(|e| unexpected("a view of a pin", &e))?;
        view.write(range.start, &bytes).map_err(|e| unexpected("a device store", &e))?;
        drop(view);
        let at = (range.start - held.range.start) as usize;
        held.shadow[at..at + bytes.len()].copy_from_slice(&bytes);
        held.stored.add(range);
        Ok(Done::Did)
    }

    /// Kernels know nothing of a cut. Such a store faults, or nobody ever sees what it stored.
    fn stray(&self, slot: u64, range: &Range<u64>, fill: u64) -> Step<()> {
        let Some(held) = self.pins.get(&slot).filter(|p| p.writes()) else { return Ok(()) };
        let range = clip(&clip(range, &held.range), &(held.kept().end..u64::MAX));
        if range.is_empty() {
            return Ok(());
        }
        let bytes = fill_bytes(fill, range.start, range.end - range.start);
        let view = held.pin.view().map_err(|e| unexpected("a view of a pin", &e))?;
        match view.write(range.start, &bytes) {
            Err(error) if error.kind() != "past-eof" => {
                Err(unexpected("a store behind a cut", &error).into())
            }
            _ => Ok(()),
        }
    }

    /// Releases, and from then on the twin has what the device stored.
    pub(super) fn release(&mut self, slot: u64, keep: bool) -> Step<Done> {
        let Some(held) = self.pins.remove(&slot) else { return Ok(Done::Skipped) };
        let stored = held.stored.within(&(0..self.size));
        let parts: Vec<_> =
            stored.into_iter().map(|r| (r.start, held.shadow(&r).to_vec())).collect();
        let (was_cut, lost) = (held.was_cut, held.lost);
        let range = held.range;
        let shrunk = self.let_go(held.pin, keep, was_cut)?;
        if lost && !shrunk && !self.settings.ignores(Known::SilentCut) {
            let what = "a release kept silent about bytes that a truncation dropped";
            return Err(Difference::new("refusal", what).into());
        }
        for (at, bytes) in parts {
            self.store_on_twin(at, &bytes)?;
        }
        if keep {
            // Also what an outsider has cut off meanwhile: the cache may not know yet.
            self.away.add(pages(&range));
        }
        Ok(Done::Did)
    }

    /// Ends a pin. True if it says that the file shrank.
    pub(super) fn let_go(&mut self, pin: Pin, keep: bool, was_cut: bool) -> Step<bool> {
        let after = if keep { After::KeepAway } else { After::WriteBack };
        match pin.release_with(after) {
            Ok(_) => Ok(false),
            Err(error) => match error.kind() {
                "file-shrunk" if was_cut => Ok(true),
                // Nobody may keep away what outsiders could miss: the bytes are home.
                "unguarded" if keep => Ok(false),
                _ => Err(unexpected("release", &error).into()),
            },
        }
    }

    pub(super) fn store_on_twin(&self, at: u64, bytes: &[u8]) -> Step<()> {
        Ok(std::os::unix::fs::FileExt::write_all_at(&self.twin_io, bytes, at)?)
    }
}

/// Under an overwriting pin whole pages have to be stored: what is not stored of a page is zeros.
pub(super) fn store_grain(range: &Range<u64>, mode: Mode) -> Range<u64> {
    if mode == Mode::Overwrite { pages(range) } else { range.clone() }
}
