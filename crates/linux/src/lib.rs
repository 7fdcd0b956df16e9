//! Every system call and all host-side `unsafe` of pageferry, behind safe types.
//!
//! The one idea: the host side of the cache *is* the kernel's page cache. This crate is the only
//! place that talks to the kernel about it: files ([`HostFile`]), mappings that can be made to wait
//! ([`FileMap`]), the events of those that do ([`Uffd`]), and which pages our own mappings stored to
//! ([`StoreTracker`]). It knows nothing of devices, frames or pins.

mod file;
mod limits;
mod map;
pub mod probe;
mod thread;
mod tracker;
mod uffd;

pub use file::{FileId, FileStamp, HostFile, OpenError};
pub use limits::{max_map_count, vma_count};
pub use map::{AccessError, FileMap, MapError};
pub use thread::current_tid;
pub use tracker::StoreTracker;
pub use uffd::{Event, Stop, Uffd, UffdError, UffdMode};

/// Bytes of the CPU's base page.
pub const PAGE: usize = 4096;
