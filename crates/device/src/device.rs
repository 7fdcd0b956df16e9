//! The trait that a device implements.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use crate::{Access, DeviceAddr, DeviceError, FrameId, FrameSpan, Processors, TransferError};

/// What a device is and can do. Constant for the device's life.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// For people: "software device", "NVIDIA ...".
    pub name: String,
    /// Bytes of one frame: a power of two, a multiple of [`PAGE_BYTES`](crate::PAGE_BYTES).
    pub frame_bytes: u64,
    /// Frames that the device has for us.
    pub capacity_frames: u64,
    /// Bytes of one address reservation: a multiple of `frame_bytes`. A file's address space is
    /// made of such regions, reserved as they are needed.
    pub region_bytes: u64,
    /// The device says which pages a kernel stored to ([`Device::take_dirty`]). Where it cannot,
    /// every page of a write pin counts as stored to.
    pub dirty_bits: bool,
    /// Other processes can map its frames ([`Device::export_frame`]).
    pub exports: bool,
}

/// Which pages of a range were stored to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// The device cannot tell: take all of them.
    Unknown,
    /// These byte ranges, relative to the address asked about: page-aligned, ascending, disjoint.
    Pages(Vec<Range<u64>>),
}

/// A frame as another process can map it.
#[derive(Debug)]
pub struct ExportedFrame {
    /// Tells the uses of a device's frames apart: never the same for two of them.
    pub serial: u64,
    /// What the other process maps, in the device's own format. It can read through it, never write.
    pub memory: OwnedFd,
}

/// A device's memory and address space.
///
/// All calls may block for as long as the copy or the driver takes; none waits for another caller's
/// kernel. All are safe to call from any thread.
pub trait Device: Send + Sync + 'static {
    /// What the device is.
    fn info(&self) -> DeviceInfo;

    /// Takes one frame out of the free ones. Its content is unspecified.
    ///
    /// # Errors
    /// [`DeviceError::Full`], [`DeviceError::AllocFailed`], [`DeviceError::FrameMemory`],
    /// [`DeviceError::Lost`].
    fn alloc_frame(&self) -> Result<FrameId, DeviceError>;

    /// Gives a frame back. It must not be attached.
    fn free_frame(&self, frame: FrameId);

    /// Frames taken and not given back.
    fn frames_in_use(&self) -> u64;

    /// Copies into device memory: `source` is called with consecutive pieces of the span's memory
    /// (or of a staging buffer), in order, and fills each completely. It may be called under the
    /// device's locks of those pages: it must not call the device, nor touch memory that may be away,
    /// and neither must the closure of [`drain`](Device::drain).
    ///
    /// # Errors
    /// The first error of either side; the span then holds unspecified bytes.
    fn fill(
        &self,
        span: FrameSpan,
        source: &mut dyn FnMut(&mut [u8]) -> io::Result<()>,
    ) -> Result<(), TransferError>;

    /// Copies out of device memory: `sink` is called with consecutive pieces of the span, in order.
    ///
    /// # Errors
    /// The first error of either side; device memory is unchanged.
    fn drain(
        &self,
        span: FrameSpan,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), TransferError>;

    /// Sets a span to zero without a copy from the host.
    ///
    /// # Errors
    /// [`DeviceError::Lost`], [`DeviceError::Invalid`].
    fn zero(&self, span: FrameSpan) -> Result<(), DeviceError>;

    /// Reserves `region_bytes` of address space, frame-aligned, with nothing attached.
    ///
    /// # Errors
    /// [`DeviceError::NoAddressSpace`], [`DeviceError::Lost`].
    fn reserve_region(&self) -> Result<DeviceAddr, DeviceError>;

    /// Gives a region back; no frame may be attached in it. If one is, the region stays reserved.
    fn release_region(&self, region: DeviceAddr);

    /// Attaches a frame at a frame-aligned address of a region. Its pages start *not present*: a
    /// kernel's access faults until [`protect`](Device::protect).
    ///
    /// # Errors
    /// [`DeviceError::Lost`], [`DeviceError::Invalid`].
    fn attach(&self, addr: DeviceAddr, frame: FrameId) -> Result<(), DeviceError>;

    /// Detaches what is attached at a frame-aligned address; when it returns, no kernel can reach
    /// the frame through it. Forgets dirty marks. Nothing attached: no effect.
    fn detach(&self, addr: DeviceAddr);

    /// Sets what kernels may do with the pages of a page-aligned range inside one frame: `None`
    /// makes them not present. Lowering from `Write` keeps the dirty marks.
    ///
    /// # Errors
    /// [`DeviceError::Lost`], [`DeviceError::Invalid`].
    fn protect(
        &self,
        addr: DeviceAddr,
        bytes: u64,
        access: Option<Access>,
    ) -> Result<(), DeviceError>;

    /// Makes every page of a page-aligned range read-only (where present) and returns, and clears,
    /// which of them kernels have stored to. The range may span frames and unattached addresses of
    /// one region; cost is proportional to frames plus pages stored to.
    ///
    /// # Errors
    /// [`DeviceError::Lost`], [`DeviceError::Invalid`].
    fn take_dirty(&self, addr: DeviceAddr, bytes: u64) -> Result<Dirty, DeviceError>;

    /// Hands out an attached frame's memory, to be mapped by another process. What the other process
    /// then sees are the pages that are present, now and later, until the frame is
    /// [reassigned](Device::reassign_frame) or freed; never bytes that the memory held before this use
    /// of the frame. It may keep the memory for as long as it likes.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`], [`DeviceError::Export`], [`DeviceError::Lost`],
    /// [`DeviceError::Invalid`].
    fn export_frame(&self, frame: FrameId) -> Result<ExportedFrame, DeviceError> {
        let _ = frame;
        Err(DeviceError::Unsupported { what: "exporting frames" })
    }

    /// Between `detach` and the next `attach` or copy: the frame will hold another folio, of the same
    /// file or not. Whoever was handed the memory for another file sees nothing of the new one.
    /// [`alloc_frame`](Device::alloc_frame) implies it.
    ///
    /// # Errors
    /// [`DeviceError::FrameMemory`]: the frame is without memory then, and can be neither attached nor
    /// copied to, until a later call of this, or an allocation of it, succeeds.
    /// [`DeviceError::Lost`], [`DeviceError::Invalid`].
    fn reassign_frame(&self, frame: FrameId, same_file: bool) -> Result<(), DeviceError> {
        let _ = (frame, same_file);
        Ok(())
    }

    /// The processors that run host closures, for a device that has them.
    fn processors(&self) -> Option<&dyn Processors> {
        None
    }
}
