//! Names of places in a device's memory.

use std::fmt;

/// The grain of validity, dirtiness and protection, in bytes: the CPU's base page.
pub const PAGE_BYTES: u64 = 4096;

/// One frame of device memory: [`DeviceInfo::frame_bytes`](crate::DeviceInfo::frame_bytes) bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId(pub u32);

/// An address in the device's own (virtual) address space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceAddr(pub u64);

impl DeviceAddr {
    /// The address `bytes` further on.
    ///
    /// # Panics
    /// If the sum leaves the 64-bit address space, which no reservation can.
    #[must_use]
    pub fn offset(self, bytes: u64) -> DeviceAddr {
        DeviceAddr(self.0.checked_add(bytes).expect("device address overflow"))
    }
}

impl fmt::Debug for DeviceAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev:{:#x}", self.0)
    }
}

impl fmt::Display for DeviceAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// `len` bytes of one frame, from `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSpan {
    /// Which frame.
    pub frame: FrameId,
    /// First byte inside the frame.
    pub offset: u64,
    /// Bytes; `offset + len` is at most the frame's size.
    pub len: u64,
}

/// What a device kernel may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Load.
    Read,
    /// Load and store.
    Write,
}
