//! The live pins of a file, by key and by place.
//!
//! The one idea: what a request asks of pins it asks of those that meet a range, so its cost follows
//! the pins in its way and not those that are held elsewhere. A pin stands where its whole range
//! does, also when a truncation has cut it: who asks for less looks at the pin itself.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::file::Pin;
use crate::pages::clip;
use crate::spans::Spans;
use crate::{Owner, PinKey};

/// The live pins of a file.
///
/// # Invariants
/// - A pin that writes stands in `writers` and in no other place, one that reads in `readers`.
/// - No two that write share a byte, so their ends ascend with their starts.
/// - `owners` counts pins, and nobody who has none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins {
    table: BTreeMap<PinKey, Pin>,
    readers: Spans,
    /// By their first bytes.
    writers: BTreeMap<u64, PinKey>,
    owners: BTreeMap<Owner, u64>,
}

impl Pins {
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(crate) fn get(&self, key: &PinKey) -> Option<&Pin> {
        self.table.get(key)
    }

    /// A pin to change, but for its range, mode and owner.
    pub(crate) fn get_mut(&mut self, key: &PinKey) -> Option<&mut Pin> {
        self.table.get_mut(key)
    }

    pub(crate) fn insert(&mut self, key: PinKey, pin: Pin) {
        if pin.mode.writes() {
            debug_assert!(self.writers_over(&pin.range).next().is_none(), "two pins write a byte");
            self.writers.insert(pin.range.start, key);
        } else {
            self.readers.insert(&pin.range, key);
        }
        *self.owners.entry(pin.owner).or_default() += 1;
        self.table.insert(key, pin);
    }

    pub(crate) fn remove(&mut self, key: &PinKey) -> Option<Pin> {
        let pin = self.table.remove(key)?;
        if pin.mode.writes() {
            self.writers.remove(&pin.range.start);
        } else {
            self.readers.remove(&pin.range, *key);
        }
        self.disown(pin.owner);
        Some(pin)
    }

    pub(crate) fn set_owner(&mut self, key: &PinKey, owner: Owner) {
        let Some(pin) = self.table.get_mut(key) else { return };
        let before = std::mem::replace(&mut pin.owner, owner);
        *self.owners.entry(owner).or_default() += 1;
        self.disown(before);
    }

    fn disown(&mut self, owner: Owner) {
        if let Some(count) = self.owners.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(&owner);
            }
        }
    }

    /// Who holds pins other than `own`.
    pub(crate) fn owners(&self, own: Option<PinKey>) -> impl Iterator<Item = Owner> + '_ {
        let own = own.and_then(|key| self.table.get(&key)).map(|pin| pin.owner);
        let others =
            self.owners.iter().filter(move |(owner, n)| **n > u64::from(own == Some(**owner)));
        others.map(|(owner, _)| *owner)
    }

    /// All of them: no request should need to.
    pub(crate) fn all(&self) -> impl Iterator<Item = (PinKey, &Pin)> {
        self.table.iter().map(|(key, pin)| looked_at((*key, pin)))
    }

    /// Those with bytes in `range`, in no order.
    pub(crate) fn over<'a>(
        &'a self,
        range: &Range<u64>,
    ) -> impl Iterator<Item = (PinKey, &'a Pin)> + use<'a> {
        let readers = self.readers.over(range.clone()).filter_map(|key| self.entry(key));
        self.writers_over(range).chain(readers)
    }

    /// Those that write with bytes in `range`, ascending.
    pub(crate) fn writers_over<'a>(
        &'a self,
        range: &Range<u64>,
    ) -> impl Iterator<Item = (PinKey, &'a Pin)> + use<'a> {
        let Range { start, end } = range.clone();
        let before = self.writers.range(..start).next_back().and_then(|(_, key)| self.entry(*key));
        let before = before.filter(move |(_, p)| start < end && p.range.end > start);
        let inside = self.writers.range(start..end.max(start));
        before.into_iter().chain(inside.filter_map(|(_, key)| self.entry(*key)))
    }

    /// Those that write, from the last of the file backwards.
    pub(crate) fn writers_back(&self) -> impl Iterator<Item = (PinKey, &Pin)> {
        self.writers.values().rev().filter_map(|key| self.entry(*key))
    }

    fn entry(&self, key: PinKey) -> Option<(PinKey, &Pin)> {
        self.table.get(&key).map(|pin| looked_at((key, pin)))
    }

    /// Checks that the pins are found where they are.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut again = Pins::default();
        for (key, pin) in &self.table {
            if let Some((other, _)) =
                again.writers_over(&pin.range).next().filter(|_| pin.mode.writes())
            {
                return Err(format!("{key:?} and {other:?} write the same bytes"));
            }
            again.insert(*key, pin.clone());
        }
        let same = again.readers == self.readers && again.writers == self.writers;
        if !same {
            return Err("pins are not found where they are".into());
        }
        if again.owners != self.owners {
            return Err(format!("pins by owner are {:?}, counted {:?}", again.owners, self.owners));
        }
        Ok(())
    }

    /// Two pins that share a byte that one of them writes and both keep.
    pub(crate) fn conflict(&self) -> Option<(PinKey, PinKey)> {
        let kept = self.table.iter().map(|(key, p)| (p.kept_bytes(), p.mode.writes(), *key));
        let mut kept: Vec<_> = kept.filter(|(range, ..)| !range.is_empty()).collect();
        kept.sort_unstable_by_key(|(range, ..)| range.start);
        // Which of those before, and which that writes, reaches farthest.
        let mut far: Option<(u64, PinKey)> = None;
        let mut far_writer: Option<(u64, PinKey)> = None;
        for (range, writes, key) in kept {
            let before = if writes { far } else { far_writer };
            if let Some((_, other)) = before.filter(|(end, _)| *end > range.start) {
                return Some((other, key));
            }
            far = far.max(Some((range.end, key)));
            if writes {
                far_writer = far_writer.max(Some((range.end, key)));
            }
        }
        None
    }
}

/// Counts, in tests, the pins that are looked at in a search.
fn looked_at<T>(found: T) -> T {
    #[cfg(test)]
    tests::LOOKED_AT.set(tests::LOOKED_AT.get() + 1);
    found
}

/// The part of `range` that a pin of `pages` holds, if any.
pub(crate) fn part(range: &Range<u64>, pages: &Range<u64>) -> Option<Range<u64>> {
    Some(clip(range, pages)).filter(|part| !part.is_empty())
}

#[cfg(test)]
#[path = "pins_tests.rs"]
mod tests;
