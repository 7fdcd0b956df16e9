//! Kernels' accesses of pinned bytes, through the device's MMU.

use std::ops::Range;

use pageferry_device::{Access, DeviceAddr, DeviceError, FaultReason, MemoryFault};
use pageferry_engine::PinKey;

use super::Opening;
use crate::service::Piece;
use crate::shared::Tally;
use crate::{Error, Result};

/// A fault that is served and comes back this often at the same address is a bug, not a race.
const REFAULTS_MAX: u32 = 1000;

impl Opening {
    /// Accesses bytes that the pin holds; serves the faults that remain possible.
    pub(super) fn through(
        &self,
        key: PinKey,
        range: Range<u64>,
        piece: &mut Piece<'_>,
    ) -> Result<()> {
        let shared = &self.cache.shared;
        let Some(processors) = shared.device.processors() else {
            return Err(Error::Unsupported("the device runs no host closures".into()));
        };
        let (mut at, mut refaults) = (range.start, 0);
        while at < range.end {
            // Addresses are contiguous inside a region.
            let region_end = (at / shared.info.region_bytes + 1) * shared.info.region_bytes;
            let len = range.end.min(region_end) - at;
            let past_eof = |bytes| Error::PastEof { range: at..range.end, file_bytes: bytes };
            let Some(addr) = self.backing.addr(at) else {
                return Err(past_eof(self.backing.bytes()?));
            };
            match piece.perform(processors.memory(), addr, len) {
                Ok(()) => {
                    piece.advance(len);
                    at += len;
                }
                Err(fault) => {
                    let done = fault.addr.0 - addr.0;
                    piece.advance(done);
                    at += done;
                    refaults = if done > 0 { 0 } else { refaults + 1 };
                    self.serve(key, at, &fault)?;
                    if refaults > REFAULTS_MAX {
                        return Err(Error::KernelFailed(format!("{fault} cannot be served")));
                    }
                }
            }
        }
        Ok(())
    }

    /// A fault on a page that the pin holds: a first store, or a page cut off meanwhile.
    fn serve(&self, key: PinKey, at: u64, fault: &MemoryFault) -> Result<()> {
        let shared = &self.cache.shared;
        Tally::add(&shared.tally.device_faults, 1);
        if fault.reason == FaultReason::Lost {
            return Err(Error::Device(DeviceError::Lost));
        }
        // Under the lock: a truncation makes its pages unreachable only after it has cut the pin.
        let core = shared.core.lock();
        let page = at & !4095;
        let end = core.engine.pin_end(key);
        if fault.reason == FaultReason::NotPresent && page < end {
            // Somebody's fetch of newer bytes failed half-way.
            return Err(Error::Device(DeviceError::CopyIn { len: 4096 }));
        }
        if page >= end {
            let file_bytes = core.engine.file_bytes(self.backing.key).unwrap_or(0);
            return Err(Error::PastEof { range: at..at + 1, file_bytes });
        }
        let frame_end = (page / shared.info.frame_bytes + 1) * shared.info.frame_bytes;
        let page_addr = DeviceAddr(fault.addr.0 & !4095);
        let bytes = end.min(frame_end) - page;
        shared.device.protect(page_addr, bytes, Some(Access::Write)).map_err(Error::Device)
    }
}
