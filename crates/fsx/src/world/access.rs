//! What anybody can do: through the cache, or past it; and the same to the twin.

use std::ops::Range;

use pageferry::Error;

use super::{Done, HeldMap, World, unexpected};
use crate::difference::{Difference, Step};
use crate::foreign::errno;
use crate::op::{Access, By};
use crate::ranges::overlap;
use crate::rng::fill_bytes;
use crate::settings::Sabotage;

/// What an access concerns.
struct Effect {
    /// The bytes that it loads or stores.
    range: Range<u64>,
    stores: bool,
    /// The file's size afterwards, if it succeeds.
    size: u64,
    /// It sets the size and does nothing else: that waits for nobody.
    resizes: bool,
}

impl Effect {
    fn of(access: &Access, size: u64) -> Effect {
        let loads = |at: u64, len: u64| (at..at.saturating_add(len), false, size);
        let stores = |at: u64, len: u64, grows: bool| {
            let end = at.saturating_add(len);
            (at..end, true, if grows { size.max(end) } else { size })
        };
        let resizes =
            matches!(access, Access::Resize { .. } | Access::Truncate { .. } | Access::Empty {});
        let (range, stores, size) = match *access {
            Access::Read { at, len } | Access::Map { at, len, .. } => loads(at, len),
            Access::Load { at, len, .. } => loads(at, len),
            Access::Store { at, len, .. } | Access::Punch { at, len } => stores(at, len, false),
            Access::Write { at, len, .. }
            | Access::Direct { at, len, .. }
            | Access::CopyFrom { at, len, .. } => stores(at, len, true),
            Access::Append { len, .. } => stores(size, len, true),
            Access::Zero { at, len, keep } => stores(at, len, !keep),
            Access::Allocate { at, len, keep } => (at..at, true, stores(at, len, !keep).2),
            Access::Resize { size: new } | Access::Truncate { size: new } => {
                (size.min(new)..u64::MAX, true, new)
            }
            Access::Empty {} => (0..u64::MAX, true, 0),
            Access::Collapse { at, len } => (at..u64::MAX, true, size.saturating_sub(len)),
            Access::Insert { at, len } => (at..u64::MAX, true, size.saturating_add(len)),
            Access::Sync {} | Access::Hold {} | Access::LetGo {} | Access::Unmap { .. } => {
                (0..0, false, size)
            }
        };
        Effect { range, stores, size, resizes }
    }
}

/// Why the subject refused: the system's number, and for the cache the error itself.
struct Refused {
    errno: i32,
    error: Option<Error>,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused { errno: error.errno(), error: Some(error) }
    }
}

impl World {
    pub(super) fn access(&mut self, by: By, access: &Access) -> Step<Done> {
        let effect = Effect::of(access, self.size);
        if !self.makes_sense(by, access, &effect) {
            return Ok(Done::Skipped);
        }
        if by != By::Cache && !self.make_ready_for_outsiders()? {
            return Ok(Done::Skipped);
        }
        let result = match by {
            By::Cache => self.cache_access(access)?,
            By::Own => {
                self.own.perform(access).map_err(|e| Refused { errno: errno(&e), error: None })
            }
            By::Foreign => {
                let result = self.foreign.perform(access)?;
                result.map_err(|errno| Refused { errno, error: None })
            }
        };
        if by == By::Cache && !self.settle_pins(access, &effect, &result)? {
            return Ok(Done::Refused);
        }
        self.same_on_twin(by, access, &effect, result)?;
        self.resized(by)?;
        Ok(Done::Did)
    }

    fn makes_sense(&self, by: By, access: &Access, effect: &Effect) -> bool {
        let empty =
            effect.range.is_empty() && effect.stores && !matches!(access, Access::Allocate { .. });
        let cut = self.pins.values().any(|p| p.cut_by_outsider);
        if empty || effect.size > self.settings.size || (cut && effect.size > self.size) {
            return false;
        }
        let excluded = by != By::Cache && effect.stores && !effect.resizes;
        if excluded && self.pins.values().any(|p| p.writes() && overlap(&p.range, &effect.range)) {
            return false;
        }
        match *access {
            Access::Hold {} | Access::LetGo {} | Access::Direct { .. } => by != By::Cache,
            Access::Map { slot, at, len, .. } => {
                let end = at.checked_add(len).is_some_and(|end| end <= self.settings.size);
                len > 0 && end && self.mapped(by).iter().all(|(s, ..)| *s != slot)
            }
            Access::Unmap { slot } => self.mapped(by).iter().any(|(s, ..)| *s == slot),
            Access::Load { slot, .. } => self.in_map(by, slot, &effect.range, false),
            Access::Store { slot, .. } => self.in_map(by, slot, &effect.range, true),
            Access::Read { at, len } => at.checked_add(len).is_some() && len <= self.settings.size,
            _ => true,
        }
    }

    /// A mapping holds the range, inside of the file.
    pub(super) fn in_map(&self, by: By, slot: u64, range: &Range<u64>, stores: bool) -> bool {
        let holds = |(s, r, writable): &(u64, Range<u64>, bool)| {
            *s == slot && r.start <= range.start && range.end <= r.end && (*writable || !stores)
        };
        !range.is_empty() && range.end <= self.size && self.mapped(by).iter().any(holds)
    }

    fn cache_access(&mut self, access: &Access) -> Step<Result<Vec<u8>, Refused>> {
        let file = self.file()?.clone();
        let span = |at: u64, len: u64| at..at.saturating_add(len);
        let done = match *access {
            Access::Read { at, len } => {
                let mut bytes = vec![0; len as usize];
                let read = file.read_at(&mut bytes, at);
                return Ok(read.map_err(Refused::from).map(|n| {
                    bytes.truncate(n);
                    bytes
                }));
            }
            Access::Write { at, len, fill }
            | Access::Direct { at, len, fill }
            | Access::CopyFrom { at, len, fill } => file.write_at(&fill_bytes(fill, at, len), at),
            Access::Append { len, fill } => {
                file.write_at(&fill_bytes(fill, self.size, len), self.size)
            }
            Access::Resize { size } | Access::Truncate { size } => file.set_len(size),
            Access::Empty {} => file.set_len(0),
            Access::Punch { at, len } => file.punch_hole(span(at, len)),
            Access::Zero { at, len, keep } => file.zero_range(span(at, len), keep),
            Access::Allocate { at, len, keep } => file.allocate(span(at, len), keep),
            Access::Collapse { at, len } => file.collapse_range(span(at, len)),
            Access::Insert { at, len } => file.insert_range(span(at, len)),
            Access::Sync {} => file.sync(),
            Access::Hold {} | Access::LetGo {} => Ok(()),
            Access::Map { .. }
            | Access::Unmap { .. }
            | Access::Load { .. }
            | Access::Store { .. } => {
                return Ok(self.cache_map(&file, access).map_err(Refused::from));
            }
        };
        Ok(done.map(|()| Vec::new()).map_err(Refused::from))
    }

    fn cache_map(&mut self, file: &pageferry::File, access: &Access) -> Result<Vec<u8>, Error> {
        match *access {
            Access::Map { slot, at, len, writable } => {
                let map = file.map(at..at + len, writable)?;
                let range = map.offset()..map.offset() + map.len() as u64;
                self.maps.insert(slot, HeldMap { map, range, writable });
            }
            Access::Unmap { slot } => {
                if let Some(held) = self.maps.remove(&slot) {
                    held.map.unmap()?;
                }
            }
            Access::Load { slot, at, len } => {
                let mut bytes = vec![0; len as usize];
                if let Some(held) = self.maps.get(&slot) {
                    held.map.read((at - held.range.start) as usize, &mut bytes)?;
                }
                return Ok(bytes);
            }
            Access::Store { slot, at, len, fill } => {
                if let Some(held) = self.maps.get(&slot) {
                    held.map.write((at - held.range.start) as usize, &fill_bytes(fill, at, len))?;
                }
            }
            _ => {}
        }
        Ok(Vec::new())
    }

    /// Holds what the cache did against the pins of this thread. False if it was refused, rightly.
    fn settle_pins(
        &self,
        access: &Access,
        effect: &Effect,
        result: &Result<Vec<u8>, Refused>,
    ) -> Step<bool> {
        let error = match result {
            Ok(_) => {
                let beside = |p: &super::Held| p.writes() && overlap(&p.live(), &effect.range);
                if effect.stores && !effect.resizes && self.pins.values().any(beside) {
                    let what = format!("{access} did not wait for a write pin on its bytes");
                    return Err(Difference::new("refusal", what).into());
                }
                return Ok(true);
            }
            Err(Refused { error: Some(error), .. }) => error,
            Err(_) => return Ok(true),
        };
        let legal = match access {
            Access::Read { .. } => self.held_away(&effect.range),
            Access::Sync {} => self.held_away(&(0..u64::MAX)),
            _ if effect.resizes => false,
            Access::Load { .. } => self.touches_write_pin(&effect.range),
            _ => effect.stores && self.touches_write_pin(&effect.range),
        };
        match error.kind() {
            "would-deadlock" if legal => Ok(false),
            // The twin has to say the same.
            "io-error" | "os-error" | "no-space" | "file-too-big" | "permission" => Ok(true),
            _ => Err(unexpected(&access.to_string(), error).into()),
        }
    }

    /// The same on the twin, with the same result.
    fn same_on_twin(
        &mut self,
        by: By,
        access: &Access,
        effect: &Effect,
        result: Result<Vec<u8>, Refused>,
    ) -> Step<()> {
        let path = match (by, access) {
            (By::Cache, Access::Read { .. }) => "cache read",
            (By::Cache, _) => "mapping",
            (By::Own, Access::Read { .. }) => "own read",
            (By::Own, _) => "own mapping",
            (By::Foreign, Access::Read { .. }) => "foreign read",
            (By::Foreign, _) => "foreign mapping",
        };
        let twin = self.twins(by, access, effect);
        let expected = twin.map_or(Ok(Vec::new()), |access| self.twin.perform(&access));
        let map = matches!(access, Access::Map { .. } | Access::Unmap { .. });
        match (expected, result) {
            (Ok(expected), Ok(got)) => {
                if map {
                    self.note_map(by, access);
                }
                self.compare(path, effect.range.start, &expected, &got)
            }
            (Err(expected), Err(got)) if errno(&expected) == got.errno => Ok(()),
            (expected, got) => {
                let said = |errno: Option<i32>| {
                    errno.map_or("success".into(), |e| {
                        std::io::Error::from_raw_os_error(e).to_string()
                    })
                };
                let expected = said(expected.err().map(|e| errno(&e)));
                let text = match &got {
                    Err(Refused { error: Some(error), .. }) => format!(" ({error})"),
                    _ => String::new(),
                };
                let got = said(got.err().map(|r| r.errno));
                let what = format!("{got}{text}, where the twin's result is: {expected}");
                Err(Difference::new("result", what).into())
            }
        }
    }

    /// What has to be done to the twin, plainly.
    fn twins(&self, by: By, access: &Access, effect: &Effect) -> Option<Access> {
        let sabotaged = self.settings.sabotage == Some(Sabotage::ShiftCopies);
        Some(match *access {
            Access::Hold {} | Access::LetGo {} | Access::Map { .. } | Access::Unmap { .. } => {
                return None;
            }
            Access::Load { at, len, .. } => Access::Read { at, len },
            Access::Store { at, len, fill, .. } => Access::Write { at, len, fill },
            Access::CopyFrom { at, len, fill } if sabotaged => {
                Access::Write { at: at + 1, len, fill }
            }
            // The cache writes plainly, whatever it stands in for.
            Access::Append { len, fill } if by == By::Cache => {
                Access::Write { at: effect.range.start, len, fill }
            }
            Access::CopyFrom { at, len, fill } if by == By::Cache => {
                Access::Write { at, len, fill }
            }
            ref other => other.clone(),
        })
    }

    fn note_map(&mut self, by: By, access: &Access) {
        match *access {
            Access::Map { slot, at, len, writable } if by != By::Cache => {
                let range = at & !4095..(at + len).next_multiple_of(4096);
                self.plain_maps.insert((by, slot), (range, writable));
            }
            Access::Unmap { slot } => drop(self.plain_maps.remove(&(by, slot))),
            _ => {}
        }
    }
}
