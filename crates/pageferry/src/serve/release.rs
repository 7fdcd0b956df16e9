//! The end of pins, with what the client's kernels stored under them.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pageferry_linux::SealedMemory;
use pageferry_wire::{self as wire, Failure, PinId, Reply, Stores};

use super::held::HeldPin;
use super::session::{Session, failed};
use crate::service::{FileService, Piece, Released};
use crate::{After, Error, PinMode, translate};

/// Bytes of stores that are in this process's memory at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Bytes stored that the file did not reach to any more.
struct Lost {
    pin: Range<u64>,
    file_bytes: u64,
    bytes: u64,
}

impl Session {
    pub(super) fn release(
        &self,
        pins: &[wire::Release],
        stores: Option<Stores>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Reply, Failure> {
        let stored = match (stores, descriptors.into_iter().next()) {
            (Some(stores), Some(memory)) => self.store(stores, memory),
            _ => Ok(Vec::new()),
        };
        let end = |release: &wire::Release| -> Result<wire::Released, Failure> {
            let pin = self.held.remove_pin(release.pin)?;
            let ended = self.end_pin(&pin, translate::after_in(release.after));
            match &stored {
                Ok(lost) => match of_pin(lost, &pin.range) {
                    Some(failure) => ended.and(Err(failure)),
                    None => ended,
                },
                Err(failure) => ended.and(Err(failure.clone())),
            }
        };
        let ended: Vec<_> = pins.iter().map(end).collect();
        if let (Err(failure), true) = (stored, pins.is_empty()) {
            return Err(failure);
        }
        Ok(Reply::Released { pins: ended })
    }

    /// Stores under a pin what came with the message.
    pub(super) fn store_inline(
        &self,
        pin: PinId,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Reply, Failure> {
        let pin = self.held.pin(pin)?;
        let range = offset..offset.saturating_add(bytes.len() as u64);
        let key = pin.key.read();
        let inside = pin.range.start <= range.start && range.end <= pin.range.end;
        let Some(key) = key.filter(|_| inside && pin.mode != PinMode::Read) else {
            return Err(Failure::Protocol(format!("no pin for stores to bytes {range:?}")));
        };
        let live = pin.file.pin_end(key).clamp(range.start, range.end) - range.start;
        let bytes = &bytes[..live as usize];
        match pin.file.access(key, range.start..range.start + live, &mut Piece::Store(bytes)) {
            // Lost, as with the others.
            Ok(()) | Err(Error::PastEof { .. }) => Ok(Reply::Done),
            Err(error) => Err(translate::failure(error)),
        }
    }

    /// Ends a pin that is off the table.
    pub(super) fn end_pin(&self, pin: &HeldPin, after: After) -> Result<wire::Released, Failure> {
        // Waits for those that use it.
        let key = pin.key.write().take();
        let Some(key) = key else { return Err(Failure::InvalidArgument("released".into())) };
        // Until it has ended, and also if that panics.
        let _counts = self.daemon.users.pinned(self.peer.uid, pin.bytes());
        let Released { written_bytes, refused } = failed(pin.file.release(key, &pin.range, after))?;
        Ok(wire::Released { written_bytes, refused })
    }

    /// Stores what the client's kernels stored. Bytes that the file does not reach to any more are lost, as
    /// they would be had they been stored here.
    fn store(&self, stores: Stores, memory: OwnedFd) -> Result<Vec<Lost>, Failure> {
        let wrong = |what: String| Failure::Protocol(format!("stores: {what}"));
        let file = self.held.file(stores.file)?;
        let pins = self.held.write_pins(&file);
        let Some(len) = stores.record_bytes().checked_add(stores.bytes) else {
            return Err(wrong("more bytes than there can be".into()));
        };
        let memory = SealedMemory::check(memory, len).map_err(|e| wrong(e.to_string()))?;
        let read = |buf: &mut [u8], at| memory.read_at(buf, at).map_err(|e| wrong(e.to_string()));
        let mut records = vec![0; stores.record_bytes() as usize];
        read(&mut records, 0)?;
        let runs = wire::parse_runs(&records).map_err(|e| wrong(e.to_string()))?;
        let bytes: u64 = runs.iter().map(|run| run.len()).sum();
        if bytes != stores.bytes {
            return Err(wrong(format!("{} bytes told, {bytes} in the runs", stores.bytes)));
        }
        // All must be right before any is stored.
        let pin_of = |run: &wire::Span| {
            let behind = pins.partition_point(|pin| pin.range.start <= run.start());
            let pin = pins[..behind].last().filter(|pin| run.end() <= pin.range.end);
            pin.ok_or_else(|| wrong(format!("no pin for bytes {:?}", run.range())))
        };
        let targets: Vec<&Arc<HeldPin>> = runs.iter().map(pin_of).collect::<Result<_, _>>()?;
        let (mut at, mut lost) = (stores.record_bytes(), Vec::new());
        let mut buf = vec![0; bytes.min(PIECE_BYTES) as usize];
        for (run, pin) in runs.iter().zip(targets) {
            let key = pin.key.read();
            let Some(key) = *key else { return Err(wrong("the pin is released".into())) };
            // What was cut off may be another pin's by now: nothing comes back there.
            let end = run.end().min(pin.file.pin_end(key)).max(run.start());
            if end < run.end() {
                let (pin, file_bytes) = (pin.range.clone(), pin.file.pin_cut(key));
                lost.push(Lost { pin, file_bytes, bytes: run.end() - end });
            }
            let mut start = run.start();
            while start < end {
                let piece = &mut buf[..(end - start).min(PIECE_BYTES) as usize];
                read(piece, at)?;
                let range = start..start + piece.len() as u64;
                match pin.file.access(key, range.clone(), &mut Piece::Store(piece)) {
                    Ok(()) => {}
                    Err(Error::PastEof { range: beyond, file_bytes }) => {
                        let bytes = range.end - beyond.start.clamp(range.start, range.end);
                        lost.push(Lost { pin: pin.range.clone(), file_bytes, bytes });
                    }
                    Err(error) => return Err(translate::failure(error)),
                }
                at += piece.len() as u64;
                start = range.end;
            }
            at += run.end() - end;
        }
        Ok(lost)
    }
}

/// What was lost of one pin, if anything was.
fn of_pin(lost: &[Lost], pin: &Range<u64>) -> Option<Failure> {
    let of_it = || lost.iter().filter(|lost| lost.pin == *pin);
    let file_bytes = of_it().map(|lost| lost.file_bytes).min()?;
    let lost_bytes = of_it().map(|lost| lost.bytes).sum();
    let range = pin.clone();
    Some(translate::failure(Error::FileShrunk { range, file_bytes, lost_bytes }))
}
