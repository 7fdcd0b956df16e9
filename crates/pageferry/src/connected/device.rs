//! The daemon's device, as this process has it: processors of its own, over memory that pins reach.

use std::io;

use pageferry_device::{
    Access, Device, DeviceAddr, DeviceError, DeviceInfo, Dirty, FaultReason, FrameId, FrameSpan,
    Memory, MemoryFault, Processors, TransferError,
};
use pageferry_soft::Workers;
use pageferry_wire as wire;

/// Runs this process's kernels. Frames are the daemon's business: what concerns them is refused here.
pub(super) struct RemoteDevice {
    info: DeviceInfo,
    workers: Workers,
}

const UNSUPPORTED: DeviceError =
    DeviceError::Unsupported { what: "managing the frames of a daemon's device" };

impl RemoteDevice {
    pub(super) fn new(device: wire::Device) -> RemoteDevice {
        let info = DeviceInfo {
            name: device.name,
            frame_bytes: device.frame_bytes,
            capacity_frames: device.capacity_frames,
            region_bytes: device.region_bytes,
            dirty_bits: device.dirty_bits,
            exports: false,
        };
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        RemoteDevice { info, workers: Workers::new(count) }
    }
}

impl Device for RemoteDevice {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn alloc_frame(&self) -> Result<FrameId, DeviceError> {
        Err(UNSUPPORTED)
    }

    fn free_frame(&self, _frame: FrameId) {}

    fn frames_in_use(&self) -> u64 {
        0
    }

    fn fill(
        &self,
        _span: FrameSpan,
        _source: &mut dyn FnMut(&mut [u8]) -> io::Result<()>,
    ) -> Result<(), TransferError> {
        Err(UNSUPPORTED.into())
    }

    fn drain(
        &self,
        _span: FrameSpan,
        _sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), TransferError> {
        Err(UNSUPPORTED.into())
    }

    fn zero(&self, _span: FrameSpan) -> Result<(), DeviceError> {
        Err(UNSUPPORTED)
    }

    fn reserve_region(&self) -> Result<DeviceAddr, DeviceError> {
        Err(UNSUPPORTED)
    }

    fn release_region(&self, _region: DeviceAddr) {}

    fn attach(&self, _addr: DeviceAddr, _frame: FrameId) -> Result<(), DeviceError> {
        Err(UNSUPPORTED)
    }

    fn detach(&self, _addr: DeviceAddr) {}

    fn protect(
        &self,
        _addr: DeviceAddr,
        _bytes: u64,
        _access: Option<Access>,
    ) -> Result<(), DeviceError> {
        Err(UNSUPPORTED)
    }

    fn take_dirty(&self, _addr: DeviceAddr, _bytes: u64) -> Result<Dirty, DeviceError> {
        Err(UNSUPPORTED)
    }

    fn processors(&self) -> Option<&dyn Processors> {
        Some(self)
    }
}

/// Nothing is reached by address alone: each pin has its own window.
impl Memory for RemoteDevice {
    fn load(&self, addr: DeviceAddr, _buf: &mut [u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault { addr, access: Access::Read, reason: FaultReason::NotPresent })
    }

    fn store(&self, addr: DeviceAddr, _bytes: &[u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault { addr, access: Access::Write, reason: FaultReason::NotPresent })
    }
}

impl Processors for RemoteDevice {
    fn parallelism(&self) -> usize {
        self.workers.count()
    }

    fn memory(&self) -> &dyn Memory {
        self
    }

    fn launch(&self, groups: u64, body: &(dyn Fn(u64) + Sync)) -> Result<(), DeviceError> {
        self.workers.launch(groups, body).map_err(|message| DeviceError::KernelFailed { message })
    }
}
