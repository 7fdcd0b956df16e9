//! The software device: a device for learning and testing, and the default where there is no GPU.
//!
//! # The one idea
//!
//! One word of atomic state per 4 KiB page is the whole MMU: its permission bits, its dirty bit and
//! a small, fair reader-writer lock. Whoever touches device memory, a kernel or a copy, does so under the
//! lock of the page; so permissions cannot change under an access, a dirty mark cannot be lost, and
//! every slice handed to a closure is exclusive or shared by proof, not by hope.
//!
//! # In other processes
//!
//! A device made [`exportable`](SoftConfig::exportable) gives each frame memory of its own, which
//! other processes map in a [`Window`]: to read it, or with copies of their own of the pages that they
//! store to. They can neither take the page's lock nor change anything, so a second word per page, the
//! *stamp*, tells them afterwards whether what they read was whole and present. One rule keeps files
//! apart: memory that was handed out for one file never holds another's bytes.
//!
//! # What is true of it and untrue of a GPU
//!
//! - Its memory is the host's. It is outside every mapping of the file, and a forked child finds the
//!   device lost, but the host's caches and memory bandwidth serve both sides.
//! - It has dirty bits and page faults; most GPUs have neither for us.
//! - Each access of a page is atomic towards every other; a GPU's is not.
//! - Attaching and detaching cost nanoseconds; on a GPU they are driver calls.
//! - Kernels are host closures.

mod address_space;
mod arena;
mod atomic_copy;
mod bounce;
mod config;
mod device;
mod exports;
mod fail;
mod frame_memory;
mod mapping;
mod memory;
mod pacing;
mod page_state;
mod stamp;
mod stats;
mod sync;
mod window;
mod window_map;
mod window_stores;
mod workers;

pub use config::{ConfigError, SoftConfig};
pub use device::SoftDevice;
pub use fail::{FailPoint, UnknownFailPoint};
pub use stats::SoftStats;
pub use window::{Stop, StopReason, Window, WindowError};
pub use workers::Workers;
