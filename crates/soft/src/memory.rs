//! Device memory as kernels see it: every access through the MMU.
//!
//! Between device and caller there is a private buffer ([`bounce`](crate::bounce)).

use pageferry_device::{Access, DeviceAddr, FaultReason, Memory, MemoryFault};

use crate::SoftDevice;
use crate::arena::Piece;
use crate::bounce::{Bounce, PIECE_BYTES};
use crate::stats::Counters;

impl SoftDevice {
    /// Locks the beginning of an access: as far as it is inside one frame, and does not fault.
    fn piece(&self, at: DeviceAddr, len: u64, access: Access) -> Result<Piece<'_>, FaultReason> {
        if self.alive().is_err() {
            return Err(FaultReason::Lost);
        }
        let offset = at.0 % self.frame_bytes;
        // The pages' locks are taken under the read lock: a frame cannot be detached in between, and
        // its detachment waits for the page locks.
        let space = self.space.read();
        let frame = space.frame_at(at.0 / self.frame_bytes).ok_or(FaultReason::NotPresent)?;
        let end = (offset + len).min(self.frame_bytes);
        // Pieces end at multiples of their size, so that neighbours do not share one.
        let border = (offset / PIECE_BYTES + 1) * PIECE_BYTES;
        let start = u64::from(frame.0) * self.frame_bytes + offset;
        self.arena.access(start, end.min(border) - offset, access)
    }

    fn fault(&self, addr: DeviceAddr, access: Access, reason: FaultReason) -> MemoryFault {
        let counter = match reason {
            FaultReason::ReadOnly => &self.counters.faults_read_only,
            _ => &self.counters.faults_not_present,
        };
        Counters::add(counter, 1);
        MemoryFault { addr, access, reason }
    }
}

impl Memory for SoftDevice {
    fn load(&self, addr: DeviceAddr, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let mut bounce = Bounce::of(buf.len());
        let mut done = 0;
        while done < buf.len() {
            let at = addr.offset(done as u64);
            let len = (buf.len() - done).min(PIECE_BYTES as usize);
            let piece = self
                .piece(at, len as u64, Access::Read)
                .map_err(|reason| self.fault(at, Access::Read, reason))?;
            let len = piece.bytes().len();
            bounce.first(len).copy_from_slice(piece.bytes());
            drop(piece);
            buf[done..done + len].copy_from_slice(bounce.first(len));
            done += len;
        }
        Ok(())
    }

    fn store(&self, addr: DeviceAddr, bytes: &[u8]) -> Result<(), MemoryFault> {
        let mut bounce = Bounce::of(bytes.len());
        let mut done = 0;
        while done < bytes.len() {
            let at = addr.offset(done as u64);
            let len = (bytes.len() - done).min(PIECE_BYTES as usize);
            bounce.first(len).copy_from_slice(&bytes[done..done + len]);
            let mut piece = self
                .piece(at, len as u64, Access::Write)
                .map_err(|reason| self.fault(at, Access::Write, reason))?;
            let to = piece.bytes_mut();
            to.copy_from_slice(bounce.first(to.len()));
            done += to.len();
        }
        Ok(())
    }
}
