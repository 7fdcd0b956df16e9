//! The seam between the page cache and a device's memory.
//!
//! The one idea: a device is **frames** that bytes are copied into and out of, plus an **address
//! space** in which frames are attached so that kernels can reach them. The cache decides which
//! bytes of which file live on which frame; the device knows nothing of files. Everything the cache
//! asks is one blocking call on [`Device`]; nothing is called back except the two copy closures.
//!
//! Lifetimes are the caller's duty and are stated as such: a frame is freed once, after it was
//! detached; no copy runs on a span that a kernel is using for writing. The cache's engine proves
//! these (its page locks and pins); a device may rely on them for *meaning*, never for memory
//! safety: a device must stay memory-safe whatever it is asked.
#![forbid(unsafe_code)]

mod address;
mod device;
mod error;
mod processor;

pub use address::{Access, DeviceAddr, FrameId, FrameSpan, PAGE_BYTES};
pub use device::{Device, DeviceInfo, Dirty, ExportedFrame};
pub use error::{DeviceError, TransferError};
pub use processor::{FaultReason, Memory, MemoryFault, Processors};
