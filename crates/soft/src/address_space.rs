//! The device's address space: which frame is attached where.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pageferry_device::{DeviceAddr, DeviceError, FrameId};

/// Bytes of a region: a file's address space grows by so much.
pub(crate) const REGION_BYTES: u64 = 1 << 40;
const REGIONS_MAX: u64 = (1 << 63) / REGION_BYTES;

/// # Invariants
/// - `by_frame` is the inverse of `blocks`: a frame is attached at most once.
/// - Frames are attached in reserved regions only.
#[derive(Default)]
pub(crate) struct AddressSpace {
    /// Block number (address / frame bytes) -> frame.
    blocks: BTreeMap<u64, FrameId>,
    by_frame: HashMap<FrameId, u64>,
    /// Regions ever handed out; region 0 is never: no address is zero.
    regions: u64,
    free_regions: BTreeSet<u64>,
}

impl AddressSpace {
    pub(crate) fn reserve(&mut self) -> Result<DeviceAddr, DeviceError> {
        let region = match self.free_regions.pop_first() {
            Some(region) => region,
            None if self.regions + 1 < REGIONS_MAX => {
                self.regions += 1;
                self.regions
            }
            None => return Err(DeviceError::NoAddressSpace { bytes: REGION_BYTES }),
        };
        Ok(DeviceAddr(region * REGION_BYTES))
    }

    fn is_reserved(&self, region: u64) -> bool {
        (1..=self.regions).contains(&region) && !self.free_regions.contains(&region)
    }

    /// Takes a region back. One in which frames of `frame_bytes` are attached stays reserved: the
    /// caller's mistake must not give its addresses to somebody else.
    pub(crate) fn release(&mut self, addr: DeviceAddr, frame_bytes: u64) {
        let region = addr.0 / REGION_BYTES;
        let blocks = REGION_BYTES / frame_bytes;
        let in_use = self.blocks.range(region * blocks..(region + 1) * blocks).next().is_some();
        if self.is_reserved(region) && !in_use {
            self.free_regions.insert(region);
        }
    }

    /// Attaches a frame at an address, or says what is wrong and changes nothing.
    pub(crate) fn attach(
        &mut self,
        addr: DeviceAddr,
        frame: FrameId,
        frame_bytes: u64,
    ) -> Result<(), DeviceError> {
        let invalid = |what| Err(DeviceError::Invalid { what, frame: Some(frame) });
        let block = addr.0 / frame_bytes;
        if !addr.0.is_multiple_of(frame_bytes) || !self.is_reserved(addr.0 / REGION_BYTES) {
            return invalid("the address is not a frame's in a reserved region");
        }
        if self.by_frame.contains_key(&frame) {
            return invalid("the frame is attached already");
        }
        if self.blocks.contains_key(&block) {
            return invalid("another frame is attached there");
        }
        self.blocks.insert(block, frame);
        self.by_frame.insert(frame, block);
        Ok(())
    }

    pub(crate) fn detach(&mut self, block: u64) -> Option<FrameId> {
        let frame = self.blocks.remove(&block)?;
        self.by_frame.remove(&frame);
        Some(frame)
    }

    pub(crate) fn frame_at(&self, block: u64) -> Option<FrameId> {
        self.blocks.get(&block).copied()
    }

    pub(crate) fn is_attached(&self, frame: FrameId) -> bool {
        self.by_frame.contains_key(&frame)
    }

    pub(crate) fn attached(
        &self,
        blocks: std::ops::RangeInclusive<u64>,
    ) -> impl Iterator<Item = (u64, FrameId)> + '_ {
        self.blocks.range(blocks).map(|(b, f)| (*b, *f))
    }
}
