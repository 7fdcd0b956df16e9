//! Device memory as kernels see it: every access through the MMU.

use pageferry_device::{Access, DeviceAddr, FaultReason, Memory, MemoryFault, PAGE_BYTES};

use crate::SoftDevice;
use crate::stats::Counters;

/// Pages locked at once by one access: enough to make the lock's cost vanish, few enough that a
/// second kernel on the same data is not held up.
const PIECE_BYTES: u64 = 64 * PAGE_BYTES;

impl SoftDevice {
    /// Walks an access piece by piece; `f` performs one and says how many bytes it did.
    fn walk(
        &self,
        addr: DeviceAddr,
        len: u64,
        access: Access,
        mut f: impl FnMut(u64, u64) -> Result<u64, FaultReason>,
    ) -> Result<(), MemoryFault> {
        let mut done = 0;
        while done < len {
            let at = addr.offset(done);
            let piece = self.piece(at, (len - done).min(PIECE_BYTES), &mut f);
            match piece {
                Ok(bytes) => done += bytes,
                Err(reason) => {
                    let counter = match reason {
                        FaultReason::ReadOnly => &self.counters.faults_read_only,
                        _ => &self.counters.faults_not_present,
                    };
                    Counters::add(counter, 1);
                    return Err(MemoryFault { addr: at, access, reason });
                }
            }
        }
        Ok(())
    }

    fn piece(
        &self,
        at: DeviceAddr,
        len: u64,
        f: &mut impl FnMut(u64, u64) -> Result<u64, FaultReason>,
    ) -> Result<u64, FaultReason> {
        if self.fail.lost() {
            return Err(FaultReason::Lost);
        }
        let offset = at.0 % self.frame_bytes;
        let block = at.0 / self.frame_bytes;
        // A page's lock is taken under the read lock: a frame cannot be detached in between, and
        // its detachment waits for the page locks.
        let space = self.space.read();
        let frame = space.frame_at(block).ok_or(FaultReason::NotPresent)?;
        let end = (offset + len).min(self.frame_bytes);
        // Pieces end at multiples of their size, so that neighbours do not share one.
        let border = (offset / PIECE_BYTES + 1) * PIECE_BYTES;
        f(u64::from(frame.0) * self.frame_bytes + offset, end.min(border) - offset)
    }
}

impl Memory for SoftDevice {
    fn load(&self, addr: DeviceAddr, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let len = buf.len() as u64;
        let mut rest = buf;
        self.walk(addr, len, Access::Read, |at, len| {
            self.arena.load(at, len, |piece| {
                let (now, later) = std::mem::take(&mut rest).split_at_mut(piece.len());
                now.copy_from_slice(piece);
                rest = later;
            })
        })
    }

    fn store(&self, addr: DeviceAddr, bytes: &[u8]) -> Result<(), MemoryFault> {
        let mut rest = bytes;
        self.walk(addr, bytes.len() as u64, Access::Write, |at, len| {
            self.arena.store(at, len, |piece| {
                let (now, later) = rest.split_at(piece.len());
                piece.copy_from_slice(now);
                rest = later;
            })
        })
    }
}
