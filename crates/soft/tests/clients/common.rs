//! A device to export from.

use std::os::fd::AsFd;

use pageferry_device::{Access, Device, DeviceAddr, ExportedFrame, FrameId, FrameSpan, PAGE_BYTES};
use pageferry_soft::{SoftConfig, SoftDevice, Window};

pub(crate) const FRAME: u64 = 64 << 10;
pub(crate) const PAGES: u64 = FRAME / PAGE_BYTES;
pub(crate) const PAGE: usize = PAGE_BYTES as usize;

pub(crate) fn device(frames: u64, frame_bytes: u64) -> SoftDevice {
    let config = SoftConfig {
        frame_bytes,
        capacity_bytes: frames * frame_bytes,
        workers: 1,
        exportable: true,
        ..SoftConfig::default()
    };
    SoftDevice::new(config).expect("device")
}

/// A device and a frame of it that is attached.
pub(crate) struct Served {
    pub(crate) device: SoftDevice,
    pub(crate) frame: FrameId,
    pub(crate) at: DeviceAddr,
    pub(crate) frame_bytes: u64,
}

impl Served {
    /// With a frame that holds no bytes and has no page present.
    pub(crate) fn empty(frame_bytes: u64) -> Served {
        let device = device(4, frame_bytes);
        let at = device.reserve_region().expect("region");
        let frame = device.alloc_frame().expect("frame");
        device.attach(at, frame).expect("attach");
        Served { device, frame, at, frame_bytes }
    }

    /// With a frame that is full of a byte and present.
    pub(crate) fn full(byte: u8) -> Served {
        let served = Served::empty(FRAME);
        served.fill(0..PAGES, byte);
        served.protect(0..PAGES, true);
        served
    }

    pub(crate) fn fill(&self, pages: std::ops::Range<u64>, byte: u8) {
        let (offset, len) = (pages.start * PAGE_BYTES, (pages.end - pages.start) * PAGE_BYTES);
        let span = FrameSpan { frame: self.frame, offset, len };
        let source = &mut |bytes: &mut [u8]| {
            bytes.fill(byte);
            Ok(())
        };
        self.device.fill(span, source).expect("fill");
    }

    pub(crate) fn protect(&self, pages: std::ops::Range<u64>, present: bool) {
        let bytes = (pages.end - pages.start) * PAGE_BYTES;
        let access = present.then_some(Access::Read);
        self.device
            .protect(self.at.offset(pages.start * PAGE_BYTES), bytes, access)
            .expect("protect");
    }

    /// Gives the frame to another folio, of the same file or not.
    pub(crate) fn reassign(&self, same_file: bool) {
        self.device.detach(self.at);
        self.device.reassign_frame(self.frame, same_file).expect("reassign");
        self.device.attach(self.at, self.frame).expect("attach");
    }

    pub(crate) fn export(&self) -> ExportedFrame {
        self.device.export_frame(self.frame).expect("export")
    }

    /// What the device holds, present or not.
    pub(crate) fn content(&self) -> Vec<u8> {
        let mut content = Vec::new();
        let span = FrameSpan { frame: self.frame, offset: 0, len: self.frame_bytes };
        let sink = &mut |bytes: &[u8]| {
            content.extend_from_slice(bytes);
            Ok(())
        };
        self.device.drain(span, sink).expect("drain");
        content
    }
}

/// The use that exported memory is in, as its tail says.
pub(crate) fn serial(memory: impl AsFd, frame_bytes: u64) -> u64 {
    let mut serial = [0; 8];
    rustix::io::pread(memory, &mut serial, frame_bytes).expect("serial");
    u64::from_ne_bytes(serial)
}

/// A window on one exported frame.
pub(crate) fn window(memory: impl AsFd, frame_bytes: u64, stores: bool) -> Window {
    let window = Window::new(1, frame_bytes, stores).expect("window");
    window.attach(0, memory.as_fd(), serial(&memory, frame_bytes)).expect("attach");
    window
}

/// What is in the memory of a window, present or not.
pub(crate) fn raw(window: &Window) -> Vec<u8> {
    let at = std::ptr::with_exposed_provenance::<u8>(window.addr());
    let byte = |n| {
        // SAFETY: mapped for as long as `window` is borrowed; volatile, as it may be changing.
        unsafe { at.wrapping_add(n).read_volatile() }
    };
    (0..(window.frames() * window.frame_bytes()) as usize).map(byte).collect()
}

/// Stores through the address.
pub(crate) fn raw_store(window: &Window, at: u64, byte: u8) {
    let to = std::ptr::with_exposed_provenance_mut::<u8>(window.addr() + at as usize);
    // SAFETY: mapped, in a window with stores, for as long as it is borrowed.
    unsafe { to.write_volatile(byte) };
}
