//! Random operations that make sense in the state the world is in.

use std::collections::VecDeque;
use std::ops::Range;

use crate::op::{Access, Act, By, Mode, Op};
use crate::rng::Rng;
use crate::weights::Weights;
use crate::world::World;

/// Pins, and mappings of each party, at a time.
const SLOTS: u64 = 4;

/// Looks for so many percent of the operations that change bytes, by each of three paths.
const LOOKS: [u64; 3] = [25, 20, 8];

pub(crate) struct Generator {
    rng: Rng,
    weights: Weights,
    /// A comparison of everything after so many operations.
    every: u64,
    made: u64,
    /// Numbers the stores, so that no two store the same.
    fill: u64,
    next: VecDeque<Op>,
}

impl Generator {
    pub(crate) fn new(seed: u64, weights: Weights, every: u64) -> Generator {
        let rng = Rng::new(seed);
        Generator { rng, weights, every, made: 0, fill: 0, next: VecDeque::new() }
    }

    pub(crate) fn next(&mut self, world: &World) -> Op {
        self.made += 1;
        if self.every > 0 && self.made.is_multiple_of(self.every) {
            return Op::Act(Act::Check {});
        }
        if let Some(op) = self.next.pop_front() {
            return op;
        }
        // Most kinds need something: a mapping, a free slot, bytes in the file.
        for _ in 0..50 {
            let at = self.rng.below(self.weights.total());
            let kind = self.weights.pick(at).to_owned();
            if let Some(op) = self.make(&kind, world) {
                self.look_after(&op, world);
                return op;
            }
        }
        Op::Act(Act::Check {})
    }

    /// Sometimes what an operation changed is looked at next: as operations of their own, so that
    /// a shrunk sequence looks where the long one did.
    fn look_after(&mut self, op: &Op, world: &World) {
        let Some((at, len)) = changed(op) else { return };
        let from = at.saturating_sub(self.rng.below(64));
        let len = len + self.rng.below(128);
        if from >= world.settings().size {
            return;
        }
        let looks = [
            Op::Act(Act::See { at: from, len }),
            Op::By(By::Cache, Access::Read { at: from, len }),
            Op::By(By::Foreign, Access::Read { at: from, len }),
        ];
        for (look, percent) in looks.into_iter().zip(LOOKS) {
            if self.rng.chance(percent) {
                self.next.push_back(look);
            }
        }
    }

    fn make(&mut self, kind: &str, world: &World) -> Option<Op> {
        let party = By::ALL.iter().find_map(|by| {
            let word = kind.strip_prefix(by.name())?.strip_prefix('-')?;
            Some((*by, word))
        });
        match party {
            Some((by, word)) => self.access(by, word, world).map(|access| Op::By(by, access)),
            None => self.act(kind, world).map(Op::Act),
        }
    }

    fn fill(&mut self) -> u64 {
        self.fill += 1;
        self.fill
    }

    /// Lengths of all magnitudes, often whole pages.
    fn len(&mut self) -> u64 {
        match self.rng.below(10) {
            0..=2 => 1 + self.rng.below(200),
            3..=4 => 1 + self.rng.below(10_000),
            5..=6 => 4096 * (1 + self.rng.below(4)),
            7..=8 => 1 + self.rng.below(80_000),
            _ => 4096 * (1 + self.rng.below(40)),
        }
    }

    /// A range below `end`: anywhere, at a page's begin, or up to the end.
    fn below(&mut self, end: u64) -> Option<(u64, u64)> {
        if end == 0 {
            return None;
        }
        let len = self.len().min(end);
        let at = match self.rng.below(10) {
            0..=4 => self.rng.below(end) & !4095,
            5 => end - len,
            _ => self.rng.below(end),
        };
        Some((at, len.min(end - at)))
    }

    fn whole_blocks(&mut self, end: u64) -> Option<(u64, u64)> {
        let at = self.rng.below(end / 4096) * 4096;
        let len = 4096 * (1 + self.rng.below(16));
        (end >= 4096).then_some((at, len))
    }

    fn access(&mut self, by: By, word: &str, world: &World) -> Option<Access> {
        let (size, max) = (world.size(), world.settings().size);
        let inside = |this: &mut Self| this.below(size);
        // Mostly where there is something; sometimes beyond.
        let anywhere = |this: &mut Self| {
            let end = if this.rng.chance(80) { size } else { (size + 70_000).min(max) };
            this.below(end.max(4096.min(max)))
        };
        Some(match word {
            "read" => anywhere(self).map(|(at, len)| Access::Read { at, len })?,
            "write" => {
                anywhere(self).map(|(at, len)| Access::Write { at, len, fill: self.fill() })?
            }
            "append" => Access::Append { len: self.len(), fill: self.fill() },
            "direct" => {
                let (at, len) = self.whole_blocks(max)?;
                Access::Direct { at, len: len.min((max & !4095) - at), fill: self.fill() }
            }
            "copy-from" => {
                anywhere(self).map(|(at, len)| Access::CopyFrom { at, len, fill: self.fill() })?
            }
            "resize" => Access::Resize { size: self.new_size(size, max) },
            "truncate" => Access::Truncate { size: self.new_size(size, max) },
            "empty" => Access::Empty {},
            "punch" => anywhere(self).map(|(at, len)| Access::Punch { at, len })?,
            "zero" => {
                let keep = self.rng.chance(50);
                anywhere(self).map(|(at, len)| Access::Zero { at, len, keep })?
            }
            "allocate" => {
                let keep = self.rng.chance(50);
                anywhere(self).map(|(at, len)| Access::Allocate { at, len, keep })?
            }
            "collapse" => self.whole_blocks(size).map(|(at, len)| Access::Collapse { at, len })?,
            "insert" => self.whole_blocks(size).map(|(at, len)| Access::Insert { at, len })?,
            "sync" => Access::Sync {},
            "hold" => Access::Hold {},
            "let-go" => Access::LetGo {},
            "map" => {
                let slot = free(self.rng.below(SLOTS), &world.mapped(by))?;
                let (at, len) = if self.rng.chance(30) { (0, max) } else { inside(self)? };
                Access::Map { slot, at, len, writable: self.rng.chance(85) }
            }
            "unmap" => Access::Unmap { slot: self.taken(&world.mapped(by))?.0 },
            "load" | "store" => self.through_map(by, word == "store", world)?,
            _ => return None,
        })
    }

    fn new_size(&mut self, size: u64, max: u64) -> u64 {
        match self.rng.below(4) {
            0 => self.rng.below(max + 1),
            1 => self.rng.below(size + 1) & !4095,
            2 => size.saturating_sub(self.rng.below(20_000)),
            _ => (size + self.rng.below(20_000)).min(max),
        }
    }

    fn taken(&mut self, slots: &[(u64, Range<u64>, bool)]) -> Option<(u64, Range<u64>, bool)> {
        slots.get(self.rng.below(slots.len() as u64) as usize).cloned()
    }

    fn through_map(&mut self, by: By, stores: bool, world: &World) -> Option<Access> {
        let (slot, range, writable) = self.taken(&world.mapped(by))?;
        let end = range.end.min(world.size());
        let (at, len) = self.below(end.checked_sub(range.start)?)?;
        let at = range.start + at;
        match stores {
            true if !writable => None,
            true => Some(Access::Store { slot, at, len, fill: self.fill() }),
            false => Some(Access::Load { slot, at, len }),
        }
    }

    fn act(&mut self, word: &str, world: &World) -> Option<Act> {
        let size = world.size();
        // Pins may reach to the end of the last page.
        let page_end = size.next_multiple_of(4096);
        let pin_end = if self.rng.chance(20) { page_end } else { size };
        Some(match word {
            "pin" => {
                let slot = free(self.rng.below(SLOTS), &world.pinned())?;
                let (at, len) = self.below(pin_end)?;
                Act::Pin { slot, at, len, mode: self.mode() }
            }
            "device-load" | "device-store" => {
                let (slot, range, writes) = self.taken(&world.pinned())?;
                let (at, len) = self.below(range.end - range.start)?;
                let at = range.start + at;
                match word {
                    "device-load" => Act::DeviceLoad { slot, at, len },
                    _ if writes => Act::DeviceStore { slot, at, len, fill: self.fill() },
                    _ => return None,
                }
            }
            "release" => {
                let (slot, ..) = self.taken(&world.pinned())?;
                Act::Release { slot, keep: self.rng.chance(50) }
            }
            "see" => self.below(size).map(|(at, len)| Act::See { at, len })?,
            "stint" => self.stint(pin_end, page_end)?,
            "view" => {
                let (at, len) = self.below(size)?;
                let (writable, accesses) = (self.rng.chance(60), 1 + self.rng.below(12));
                Act::View { at, len, writable, accesses, fill: self.fill() }
            }
            "poke" => {
                let (slot, range, _) = self.taken(&world.mapped(By::Cache))?;
                let (at, _) = self.below(range.end.min(size).checked_sub(range.start)?)?;
                Act::Poke { slot, at: (range.start + at) & !7, fill: self.fill() }
            }
            "prefetch" => self.below(size).map(|(at, len)| Act::Prefetch { at, len })?,
            "evict" => {
                let (at, len) = if self.rng.chance(50) { (0, size) } else { self.below(size)? };
                Act::Evict { at, len }
            }
            "flush" => self.below(size).map(|(at, len)| Act::Flush { at, len })?,
            "reopen" => Act::Reopen {},
            "restart" => Act::Restart {},
            "check" => Act::Check {},
            _ => return None,
        })
    }

    fn mode(&mut self) -> Mode {
        match self.rng.below(5) {
            0 | 1 => Mode::Read,
            2 | 3 => Mode::Write,
            _ => Mode::Overwrite,
        }
    }

    fn stint(&mut self, pin_end: u64, page_end: u64) -> Option<Act> {
        let (mut at, mut len) = self.below(pin_end)?;
        if self.rng.chance(3) {
            // Past the end: has to be refused.
            (at, len) = (page_end, len);
        }
        let (from, bytes) = self.below(len)?;
        let mode = if self.rng.chance(70) { Mode::Write } else { Mode::Overwrite };
        let keep = self.rng.chance(60);
        Some(Act::Stint { at, len, mode, from: at + from, bytes, fill: self.fill(), keep })
    }
}

/// A slot, if it is free.
fn free(slot: u64, taken: &[(u64, Range<u64>, bool)]) -> Option<u64> {
    taken.iter().all(|(s, ..)| *s != slot).then_some(slot)
}

/// What an operation changed, roughly: where, and how much of it is worth a look.
fn changed(op: &Op) -> Option<(u64, u64)> {
    let touched = op.touched()?;
    op.changes().then(|| (touched.start, (touched.end - touched.start).min(64 << 10)))
}
