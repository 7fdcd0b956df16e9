//! Looking at the file, by every path there is.

use std::ops::Range;

use super::{World, unexpected};
use crate::difference::Step;
use crate::op::{Access, By, Mode};
use crate::ranges::{Ranges, clip, pages};

/// Bytes looked at in one go.
const WINDOW: u64 = 128 << 10;

impl World {
    /// All bytes by all paths: first where things are, then what moves them.
    pub(super) fn check(&mut self) -> Step<()> {
        let whole = 0..self.size;
        self.see(&whole)?;
        let slots: Vec<u64> = self.pins.keys().copied().collect();
        for slot in slots {
            self.device_load(slot, &whole)?;
        }
        self.look_through_mapping()?;
        for range in self.gaps(&whole, |p| p.over_away) {
            self.access(By::Cache, &read(&range))?;
        }
        self.access(By::Own, &read(&whole))?;
        self.access(By::Foreign, &read(&whole))?;
        Ok(())
    }

    /// The parts of a range of whose pages no such pin keeps any.
    fn gaps(&self, range: &Range<u64>, is: impl Fn(&super::Held) -> bool) -> Vec<Range<u64>> {
        let mut held = Ranges::default();
        self.pins.values().filter(|p| is(p)).for_each(|p| held.add(pages(&p.kept())));
        held.gaps(range)
    }

    /// Compares what the device sees, but for what a write pin holds. False if not
    /// all of it could be pinned.
    pub(super) fn see(&mut self, range: &Range<u64>) -> Step<bool> {
        let mut held = Ranges::default();
        self.pins.values().filter(|p| p.writes()).for_each(|p| held.add(p.range.clone()));
        let step = WINDOW.min(self.settings.memory / 2).max(self.settings.frame);
        let mut all = true;
        for gap in held.gaps(&clip(range, &(0..self.size))) {
            let mut at = gap.start;
            while at < gap.end {
                let end = (at / step * step + step).min(gap.end);
                let Some(pin) = self.take(&(at..end), Mode::Read)? else {
                    (at, all) = (end, false);
                    continue;
                };
                let mut got = vec![0; (end - at) as usize];
                let view = pin.view().map_err(|e| unexpected("a view of a pin", &e))?;
                view.read(at, &mut got).map_err(|e| unexpected("a device load", &e))?;
                drop(view);
                self.let_go(pin, false, false)?;
                let expected = self.expected(&(at..end))?;
                self.compare("device", at, &expected, &got)?;
                at = end;
            }
        }
        Ok(all)
    }

    /// Compares what a mapping made for the purpose shows, but for pages under write pins, and what
    /// those show that are there.
    fn look_through_mapping(&mut self) -> Step<()> {
        if self.size == 0 {
            return Ok(());
        }
        let map = self.file()?.map(0..self.size, false).map_err(|e| unexpected("map", &e))?;
        let mut seen = Vec::new();
        for gap in self.gaps(&(0..self.size), super::Held::writes) {
            let mut got = vec![0; (gap.end - gap.start) as usize];
            map.read(gap.start as usize, &mut got).map_err(|e| unexpected("a load", &e))?;
            seen.push((gap, got));
        }
        map.unmap().map_err(|e| unexpected("unmap", &e))?;
        for (gap, got) in seen {
            let expected = self.expected(&gap)?;
            self.compare("mapping", gap.start, &expected, &got)?;
        }
        for (slot, range, _) in self.mapped(By::Cache) {
            for gap in self.gaps(&clip(&range, &(0..self.size)), super::Held::writes) {
                let load = Access::Load { slot, at: gap.start, len: gap.end - gap.start };
                self.access(By::Cache, &load)?;
            }
        }
        Ok(())
    }
}

fn read(range: &Range<u64>) -> Access {
    Access::Read { at: range.start, len: range.end - range.start }
}
