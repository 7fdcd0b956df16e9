//! What one client holds.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use pageferry_engine::PinKey;
use pageferry_wire::{Failure, FileId, PinId};

use super::kept::OpenFile;
use super::limits::{Limits, beyond};
use crate::PinMode;
use crate::sync::{Mutex, RwLock};

/// What one client holds.
#[derive(Default)]
pub(super) struct Held(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    files: HashMap<FileId, Arc<OpenFile>>,
    pins: HashMap<PinId, Arc<HeldPin>>,
    /// Pins asked for and not yet granted.
    coming: usize,
    pinned_bytes: u64,
    /// The last number given to a file or pin.
    last: u64,
}

/// A pin of a client's.
pub(super) struct HeldPin {
    pub(super) file: Arc<OpenFile>,
    pub(super) range: Range<u64>,
    pub(super) mode: PinMode,
    /// Whoever uses the pin holds this for reading: it does not end meanwhile. `None`: it has ended.
    pub(super) key: RwLock<Option<PinKey>>,
}

impl HeldPin {
    pub(super) fn bytes(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }
}

/// Counts of what is held.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) files: u64,
    pub(super) pins: u64,
    pub(super) pinned_bytes: u64,
}

/// Bytes of ranges, if there can be so many.
pub(super) fn total(ranges: &[Range<u64>]) -> Option<u64> {
    let mut lens = ranges.iter().map(|range| range.end.saturating_sub(range.start));
    lens.try_fold(0u64, u64::checked_add)
}

impl Held {
    /// Puts a file into the table, if the limit allows.
    pub(super) fn add_file(&self, file: OpenFile, limits: &Limits) -> Result<FileId, Failure> {
        let mut tables = self.0.lock();
        if tables.files.len() >= limits.files {
            // Closing it may take its time.
            drop(tables);
            drop(file);
            return Err(beyond("open files of a session", limits.files as u64));
        }
        tables.last += 1;
        let id = FileId(tables.last);
        tables.files.insert(id, Arc::new(file));
        Ok(id)
    }

    pub(super) fn file(&self, id: FileId) -> Result<Arc<OpenFile>, Failure> {
        let unknown = || Failure::Protocol(format!("the session has no file {}", id.0));
        self.0.lock().files.get(&id).cloned().ok_or_else(unknown)
    }

    /// Takes a file off the table.
    pub(super) fn remove_file(&self, id: FileId) -> Result<Arc<OpenFile>, Failure> {
        let file = self.file(id)?;
        let mut tables = self.0.lock();
        if tables.pins.values().any(|pin| Arc::ptr_eq(&pin.file, &file)) {
            return Err(Failure::InvalidArgument("the file still has pins".into()));
        }
        tables.files.remove(&id);
        Ok(file)
    }

    pub(super) fn files(&self) -> Vec<Arc<OpenFile>> {
        self.0.lock().files.values().cloned().collect()
    }

    /// Makes room for so many pins of so many bytes, which are going to be asked for.
    pub(super) fn expect_pins(
        &self,
        pins: usize,
        bytes: u64,
        limits: &Limits,
    ) -> Result<Expected<'_>, Failure> {
        let mut tables = self.0.lock();
        if tables.pins.len() + tables.coming + pins > limits.pins {
            return Err(beyond("pins of a session", limits.pins as u64));
        }
        let sum = tables.pinned_bytes.checked_add(bytes);
        let Some(sum) = sum.filter(|sum| *sum <= limits.pinned_bytes) else {
            return Err(beyond("bytes under pins of a session", limits.pinned_bytes));
        };
        tables.coming += pins;
        tables.pinned_bytes = sum;
        Ok(Expected { held: self, pins, bytes })
    }

    fn add_pins(
        &self,
        file: &Arc<OpenFile>,
        ranges: &[Range<u64>],
        keys: &[PinKey],
        mode: PinMode,
    ) -> Vec<PinId> {
        let mut tables = self.0.lock();
        let add = |(range, key): (&Range<u64>, &PinKey)| {
            tables.last += 1;
            let id = PinId(tables.last);
            let pin = HeldPin {
                file: Arc::clone(file),
                range: range.clone(),
                mode,
                key: RwLock::new(Some(*key)),
            };
            tables.pins.insert(id, Arc::new(pin));
            id
        };
        ranges.iter().zip(keys).map(add).collect()
    }

    pub(super) fn pin(&self, id: PinId) -> Result<Arc<HeldPin>, Failure> {
        self.0.lock().pins.get(&id).cloned().ok_or_else(|| no_pin(id))
    }

    /// Takes a pin off the table, which is then ended by who took it.
    pub(super) fn remove_pin(&self, id: PinId) -> Result<Arc<HeldPin>, Failure> {
        let mut tables = self.0.lock();
        let pin = tables.pins.remove(&id).ok_or_else(|| no_pin(id))?;
        tables.pinned_bytes -= pin.bytes();
        Ok(pin)
    }

    /// The pins for writing of a file, ascending.
    pub(super) fn write_pins(&self, file: &Arc<OpenFile>) -> Vec<Arc<HeldPin>> {
        let tables = self.0.lock();
        let writes =
            |pin: &&Arc<HeldPin>| Arc::ptr_eq(&pin.file, file) && pin.mode != PinMode::Read;
        let mut pins: Vec<_> = tables.pins.values().filter(writes).cloned().collect();
        pins.sort_unstable_by_key(|pin| pin.range.start);
        pins
    }

    /// Everything that is left, when the client is gone.
    pub(super) fn take_all(&self) -> (Vec<Arc<HeldPin>>, Vec<Arc<OpenFile>>) {
        let mut tables = self.0.lock();
        tables.pinned_bytes = 0;
        let pins = tables.pins.drain().map(|(_, pin)| pin).collect();
        (pins, tables.files.drain().map(|(_, file)| file).collect())
    }

    pub(super) fn counts(&self) -> Counts {
        let tables = self.0.lock();
        Counts {
            files: tables.files.len() as u64,
            pins: tables.pins.len() as u64,
            pinned_bytes: tables.pinned_bytes,
        }
    }
}

/// Room for pins that are being asked for; given back when dropped, also where something panics before they are granted.
#[must_use]
pub(super) struct Expected<'h> {
    held: &'h Held,
    pins: usize,
    bytes: u64,
}

impl Expected<'_> {
    /// They were granted.
    pub(super) fn granted(
        mut self,
        file: &Arc<OpenFile>,
        ranges: &[Range<u64>],
        keys: &[PinKey],
        mode: PinMode,
    ) -> Vec<PinId> {
        let pins = self.held.add_pins(file, ranges, keys, mode);
        self.bytes = 0;
        pins
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        let mut tables = self.held.0.lock();
        tables.coming -= self.pins;
        tables.pinned_bytes -= self.bytes;
    }
}

fn no_pin(id: PinId) -> Failure {
    Failure::Protocol(format!("the session holds no pin {}", id.0))
}
