//! The invariants, as code. Numbers as in the crate's documentation.

use std::collections::HashSet;

use crate::Engine;
use crate::pages::{clip, page_span};

impl<E: Clone> Engine<E> {
    /// Checks every invariant of the protocol.
    ///
    /// # Errors
    /// The number of the first that is broken, and how.
    pub fn check(&self) -> Result<(), String> {
        let mut frames = HashSet::new();
        for (key, file) in &self.files {
            file.pages.check().map_err(|e| format!("I1 {key:?}: {e}"))?;
            for (folio, f) in &file.pages.folios {
                if !frames.insert(f.frame) {
                    return Err(format!(
                        "I2 {:?} serves two folios, one {folio} of {key:?}",
                        f.frame
                    ));
                }
            }
            for (range, action) in file.busy.iter() {
                let mut locked = crate::range::RangeSet::new();
                for (_, lock) in self
                    .flights
                    .get(action)
                    .into_iter()
                    .flat_map(|f| &f.locks)
                    .filter(|(k, _)| k == key)
                {
                    locked.add(lock.clone());
                }
                if !locked.covers(range.clone()) {
                    return Err(format!("I3 {key:?}: pages {range:?} are locked by nobody"));
                }
            }
            if let Some((a, b)) = file.pins.conflict() {
                return Err(format!("I4 {key:?}: {a:?} and {b:?} overlap and one writes"));
            }
            file.pins.check().map_err(|e| format!("I8 {key:?}: {e}"))?;
            for (map, m) in &file.maps {
                for run in file.pages.dirty_runs(&m.range) {
                    let pages = clip(&page_span(&run), &m.range);
                    if let Some(open) = m.trapped.first_gap(pages) {
                        return Err(format!(
                            "I5 {key:?}: dirty pages {open:?} are reachable through {map:?}"
                        ));
                    }
                }
            }
        }
        if frames.len() as u64 > self.frames_used {
            return Err(format!("I2 {} frames in use, {} counted", frames.len(), self.frames_used));
        }
        for (pin, file) in &self.pin_files {
            if self.files.get(file).is_none_or(|f| f.pins.get(pin).is_none()) {
                return Err(format!("I6 {pin:?} is listed but not held"));
            }
        }
        Ok(())
    }

    /// Checks that a granted pin is what it promises: all its pages have frames, and CPU accesses
    /// of a write pin's pages wait. `false` if it is not known.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_pin(&self, pin: crate::PinKey) -> Result<bool, String> {
        let Some(file) = self.pin_files.get(&pin).and_then(|f| self.files.get(f)) else {
            return Ok(false);
        };
        let Some(p) = file.pins.get(&pin) else { return Ok(false) };
        let held = p.live_pages();
        for folio in file.pages.folios_of(&held) {
            if file.pages.frame(folio).is_none() {
                return Err(format!("I7 folio {folio} of {pin:?} has no frame"));
            }
        }
        if p.mode.writes() {
            for (map, m) in &file.maps {
                if let Some(open) = m.trapped.first_gap(clip(&held, &m.range)) {
                    return Err(format!(
                        "I5 pages {open:?} of {pin:?} are reachable through {map:?}"
                    ));
                }
            }
        }
        Ok(true)
    }
}
