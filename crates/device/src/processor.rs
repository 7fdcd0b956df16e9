//! Kernels as host closures, for devices that can run them.

use std::fmt;

use crate::{Access, DeviceAddr, DeviceError};

/// Why the device's MMU refused an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// Nothing is attached there, or the page is not present.
    NotPresent,
    /// The page is present, read-only, and the access was a store.
    ReadOnly,
    /// The device is lost.
    Lost,
}

/// A device page fault: the access at `addr` did not happen (bytes of earlier pages of the same
/// call may have been transferred).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFault {
    /// First address that could not be accessed.
    pub addr: DeviceAddr,
    /// What was tried.
    pub access: Access,
    /// Why it was refused.
    pub reason: FaultReason,
}

impl fmt::Display for MemoryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device page fault: {:?} at {}: {:?}", self.access, self.addr, self.reason)
    }
}

impl std::error::Error for MemoryFault {}

/// Device memory as a kernel sees it: every access goes through the device's MMU.
///
/// An access is atomic per page with respect to copies and to other accesses of that page. Nothing is
/// held between accesses: code of the kernel's author never runs under a lock of the device.
///
/// Nor is the memory of `buf` or `bytes` touched under one: it may be a page of a mapping that is
/// away, which waits until this very device has given it back. An implementation copies through
/// memory of its own.
pub trait Memory: Sync {
    /// Loads `buf.len()` bytes from `addr`.
    ///
    /// # Errors
    /// The first fault; `buf` before the faulting address is filled.
    fn load(&self, addr: DeviceAddr, buf: &mut [u8]) -> Result<(), MemoryFault>;

    /// Stores `bytes` at `addr` and marks the pages dirty.
    ///
    /// # Errors
    /// The first fault; bytes before the faulting address are stored.
    fn store(&self, addr: DeviceAddr, bytes: &[u8]) -> Result<(), MemoryFault>;
}

/// Worker threads that run kernels.
pub trait Processors {
    /// How many groups run at once.
    fn parallelism(&self) -> usize;

    /// The memory that kernels see; accesses are timed and checked as a kernel's are.
    fn memory(&self) -> &dyn Memory;

    /// Runs `body` for each group `0..groups` on the processors and waits until all have ended.
    ///
    /// # Errors
    /// [`DeviceError::KernelFailed`] if a group panicked (the others still run to their end),
    /// [`DeviceError::Lost`].
    fn launch(&self, groups: u64, body: &(dyn Fn(u64) + Sync)) -> Result<(), DeviceError>;
}
