//! Whoever performs the engine's actions, and fails on purpose.

use std::ops::Range;

use pageferry_engine::{Action, Class, FileKey, FrameId, MapKey, Mode, PAGE_BYTES, Reply};

use crate::actors::{Flight, Task, Want, World};
use crate::twins::{CELL, FILE_MAX, FRAME, TwinMap, cells, pages};

const ENOSPC: u32 = 28;
const EIO: u32 = 5;
const ENOMEM: u32 = 12;

/// A lost device does none of these.
fn on_device(action: &Action) -> bool {
    matches!(
        action,
        Action::Allocate { .. }
            | Action::Steal { .. }
            | Action::Fetch { .. }
            | Action::WriteBack { .. }
            | Action::TakeDirty { .. }
            | Action::Hide { .. }
    )
}

impl World {
    pub(crate) fn fly(&mut self, at: usize) {
        let mut flight = self.flights.swap_remove(at);
        if flight.reply.is_none() {
            if flight.steps > 0 && self.dice.roll(3) > 0 {
                flight.steps -= 1;
                return self.flights.push(flight);
            }
            if self.lost && on_device(&flight.action) {
                flight.reply = self.failure(&flight);
            } else if self.lasting
                && matches!(&flight.action, Action::WriteBack { range, .. } if (range.start / FRAME).is_multiple_of(3))
            {
                flight.reply = Some(Reply::Failed { class: Class::Other, error: ENOSPC });
            } else if self.dice.roll(1000) < self.failures {
                flight.reply = self.failure(&flight);
            }
            if flight.reply.is_none() {
                self.perform(&mut flight);
            }
            // The effect is there; the engine hears of it later.
            return self.flights.push(flight);
        }
        let reply = flight.reply.expect("checked");
        let (actor, key) = (flight.actor, flight.key);
        self.say(|| format!("{actor} ends {key:?} {reply:?}"));
        self.engine.complete(key, reply);
    }

    /// Nobody can tell what was stored: pages that an overwrite has zeroed may go home as zeros.
    fn doubt(&mut self, file: FileKey) {
        let mut zeroed = Vec::new();
        let none = Vec::new();
        for task in &self.actors {
            let (of, range, mode, stores) = match task {
                Task::Holding { file, range, mode, stores, .. } => (file, range, mode, stores),
                Task::Asked { want: Want::Release { file, range, mode, stores }, .. } => {
                    (file, range, mode, stores)
                }
                Task::Asked { want: Want::Pin { file, range, mode, .. }, .. } => {
                    (file, range, mode, &none)
                }
                _ => continue,
            };
            if *of == file && *mode == Mode::Overwrite {
                let cells = (range.start..range.end).step_by(CELL as usize);
                zeroed.extend(cells.filter(|at| stores.iter().all(|(a, _)| a != at)));
            }
        }
        zeroed.into_iter().for_each(|at| self.model.begin(file, at, 0));
    }

    /// What is left by an action that fails.
    fn failure(&mut self, flight: &Flight) -> Option<Reply<u32>> {
        let twice = self.dice.roll(2) == 0;
        let (class, error) = match &flight.action {
            Action::Trap { .. } | Action::Untrap { .. } | Action::MapIn { .. } => {
                (Class::OutOfVmas, ENOMEM)
            }
            Action::Allocate { .. } if twice => (Class::NoFrame, ENOSPC),
            Action::Allocate { .. } => (Class::Other, ENOMEM),
            Action::Fetch { file, frame, range, .. } => {
                // A failed copy leaves rubbish, hidden from kernels.
                self.twins.show(*file, range, false);
                let there = range.start % FRAME..range.start % FRAME + (range.end - range.start);
                self.twins.frames[frame.0 as usize].cells[cells(&there)].fill(0xDEAD);
                (Class::Other, EIO)
            }
            Action::WriteBack { .. } => (Class::Other, ENOSPC),
            Action::TakeDirty { file, range } => {
                // Of several stretches some may have been asked.
                if twice {
                    self.twins.take_dirty(*file, range);
                }
                self.doubt(*file);
                (Class::Other, EIO)
            }
            Action::Steal { frame, from, .. } => {
                // Detached, attached nowhere, given back.
                self.twins.files.get_mut(&from.0).expect("known").attached.remove(&from.1);
                self.twins.frames[frame.0 as usize].used = false;
                (Class::Other, EIO)
            }
            Action::Change { file } => {
                if twice {
                    self.change(flight.actor, *file);
                }
                // A truncation that nobody saw, not even who made it, leaves open what it has cut.
                let task = &self.actors[flight.actor];
                let cuts = matches!(task, Task::Asked { want: Want::Resize { .. }, .. });
                if cuts && twice || self.dice.roll(2) == 0 {
                    let after = self.twins.files[file].bytes;
                    return Some(Reply::Changed { after, error: Some(EIO) });
                }
                (Class::Other, EIO)
            }
            _ => (Class::Other, EIO),
        };
        let class = if self.lost && on_device(&flight.action) { Class::DeviceLost } else { class };
        Some(Reply::Failed { class, error })
    }

    pub(crate) fn perform(&mut self, flight: &mut Flight) {
        let reply = match flight.action.clone() {
            Action::Observe { file, since } => {
                let twin = self.twins.files.get_mut(&file).expect("known");
                if self.blind {
                    twin.changed(None);
                }
                Reply::Observed(twin.observe(since))
            }
            Action::Measure { file } => Reply::Measured(self.twins.files[&file].bytes),
            Action::ScanStores { file, map, range } => Reply::Stored(self.scan(file, map, &range)),
            Action::Trap { file, map, range } => {
                let stored = self.scan(file, map, &range);
                self.with_map(file, map, |m| m.trapped.extend(pages(&range)));
                Reply::Stored(stored)
            }
            Action::Untrap { file, map, range } => {
                self.with_map(file, map, |m| {
                    for page in pages(&range) {
                        m.trapped.remove(&page);
                        m.stored.insert(page);
                    }
                });
                Reply::Done
            }
            Action::Allocate { file, folio } => {
                let free =
                    self.twins.frames.iter().position(|f| !f.used).expect("the budget is kept");
                self.twins.frames[free].used = true;
                self.attach(file, folio, FrameId(free as u32));
                Reply::Frame(FrameId(free as u32))
            }
            Action::Steal { frame, from, to } => {
                let had =
                    self.twins.files.get_mut(&from.0).expect("known").attached.remove(&from.1);
                assert_eq!(had, Some(frame), "a frame is stolen from where it is not");
                self.attach(to.0, to.1, frame);
                Reply::Done
            }
            Action::Free { frame, file, folio } => {
                let had = self.twins.files.get_mut(&file).expect("known").attached.remove(&folio);
                assert_eq!(had, Some(frame), "a frame is freed where it is not");
                self.twins.frames[frame.0 as usize].used = false;
                Reply::Done
            }
            Action::Fetch { file, frame, range, zero } => {
                // An end of file before the known one is news; and some say so without need.
                let known = self.engine.file_bytes(file).unwrap_or(0).min(range.end);
                let short = self.twins.files[&file].bytes < known || self.dice.roll(50) == 0;
                if zero {
                    let there =
                        range.start % FRAME..range.start % FRAME + (range.end - range.start);
                    self.twins.frames[frame.0 as usize].cells[cells(&there)].fill(0);
                } else {
                    self.twins.copy(file, frame, &range, false);
                }
                self.twins.show(file, &range, true);
                Reply::Fetched { short: short && !zero }
            }
            Action::WriteBack { file, frame, range } => {
                self.twins.copy(file, frame, &range, true);
                let after = self.twins.files[&file].bytes;
                let bytes = range.end.min(after).saturating_sub(range.start);
                Reply::WroteBack { bytes, after }
            }
            Action::TakeDirty { file, range } => {
                Reply::Dirty(Some(self.twins.take_dirty(file, &range)))
            }
            Action::Hide { file, ranges } => {
                ranges.iter().for_each(|range| self.twins.show(file, range, false));
                Reply::Done
            }
            Action::Expel { .. } => Reply::Done,
            Action::Change { file } => {
                self.change(flight.actor, file);
                Reply::Changed { after: self.twins.files[&file].bytes, error: None }
            }
            Action::MapIn { file, map, range, traps } => {
                let trapped = traps.iter().flat_map(pages).collect();
                let writable = self.is_writable(map);
                // Nobody has asked about its pages yet.
                let stored = pages(&range).collect();
                let twin = TwinMap { range, writable, trapped, stored };
                self.twins.files.get_mut(&file).expect("known").maps.insert(map, twin);
                Reply::Done
            }
            Action::MapOut { file, map } => {
                self.twins.files.get_mut(&file).expect("known").maps.remove(&map);
                Reply::Done
            }
        };
        flight.reply = Some(reply);
    }

    fn attach(&mut self, file: FileKey, folio: u64, frame: FrameId) {
        let old = self.twins.files.get_mut(&file).expect("known").attached.insert(folio, frame);
        assert_eq!(old, None, "two frames for one folio");
        self.twins.frames[frame.0 as usize].dirty.clear();
        self.twins.frames[frame.0 as usize].present.clear();
    }

    fn with_map(&mut self, file: FileKey, map: MapKey, f: impl FnOnce(&mut TwinMap)) {
        if let Some(twin) = self.twins.files.get_mut(&file).and_then(|t| t.maps.get_mut(&map)) {
            f(twin);
        }
    }

    fn scan(&mut self, file: FileKey, map: MapKey, range: &Range<u64>) -> Option<Vec<Range<u64>>> {
        let twin = self.twins.files.get_mut(&file)?.maps.get_mut(&map)?;
        let found = pages(range).filter(|p| !twin.trapped.contains(p) && twin.stored.remove(p));
        let found: Vec<u64> = found.collect();
        // Sometimes the kernel cannot tell.
        if self.dice.roll(16) == 0 {
            return None;
        }
        let found = found.into_iter();
        Some(found.map(|p| p * PAGE_BYTES..(p + 1) * PAGE_BYTES).collect())
    }

    /// The system call that the actor's request is about.
    fn change(&mut self, actor: usize, file: FileKey) {
        match &self.actors[actor] {
            Task::Asked { want: Want::Resize { bytes, .. }, .. } => {
                let bytes = *bytes;
                let gone = bytes.min(self.twins.files[&file].bytes)..FILE_MAX;
                for at in gone.step_by(CELL as usize) {
                    self.model.begin(file, at, 0);
                }
                self.twins.files.get_mut(&file).expect("known").resize(bytes);
            }
            Task::Asked { want: Want::Write { range, value, .. }, .. } => {
                let (range, value) = (range.clone(), *value);
                let twin = self.twins.files.get_mut(&file).expect("known");
                // Whoever writes behind the end extends the file, whatever was planned.
                twin.bytes = twin.bytes.max(range.end);
                twin.cells[cells(&range)].fill(value);
                for at in (range.start..range.end).step_by(CELL as usize) {
                    self.model.begin(file, at, value);
                }
            }
            _ => panic!("a change that nobody asked for"),
        }
    }
}
