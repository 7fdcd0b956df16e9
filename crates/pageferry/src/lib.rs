//! A page cache in device memory for ordinary files.
//!
//! A program names a file and a byte range; pageferry puts the pages into the memory of a device
//! (a GPU, or the [software device](soft)), keeps them there, and keeps them coherent with the file.
//! The host side of the cache *is* the kernel's page cache: there is no second copy in host memory,
//! and plain files stay plain.
//!
//! ```
//! use std::sync::Arc;
//! use pageferry::{Cache, CacheConfig, PinMode, soft::{SoftConfig, SoftDevice}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("numbers");
//! std::fs::write(&path, vec![1u8; 100_000])?;
//!
//! let device = SoftDevice::new(SoftConfig::default())?;
//! let cache = Cache::new(Arc::new(device), CacheConfig::default())?;
//! let file = cache.open(&path)?;
//!
//! // The device adds one to every byte.
//! let pin = file.pin(0..100_000, PinMode::Write)?;
//! let view = pin.view()?;
//! cache.launch(4, |group| {
//!     let part = group * 25_000..(group + 1) * 25_000;
//!     view.update(part, &mut |bytes| bytes.iter_mut().for_each(|b| *b += 1))
//! })?;
//! drop(view);
//! pin.release()?;
//!
//! // Whoever reads the file sees it.
//! assert_eq!(std::fs::read(&path)?, vec![2u8; 100_000]);
//! # Ok(()) }
//! ```
//!
//! `SEMANTICS.md` states what is promised; `ARCHITECTURE.md` how it is built.
#![forbid(unsafe_code)]

/// The examples of `SEMANTICS.md` are tests.
#[cfg(doctest)]
#[doc = include_str!("../../../SEMANTICS.md")]
struct Semantics;

mod backing;
mod cache;
mod config;
mod connected;
mod embedded;
mod error;
mod file;
mod flusher;
mod guard;
mod map;
mod perform;
mod pin;
pub mod serve;
mod service;
mod session;
mod shared;
mod stats;
mod sync;
mod translate;
mod trap;
mod view;

pub use cache::Cache;
pub use config::{After, CacheConfig, Guard, PinMode, Validation, Wait};
pub use error::{Error, Result};
pub use file::File;
pub use guard::Coherence;
pub use map::Map;
pub use pageferry_device as device;
pub use pageferry_device::{Device, DeviceAddr};
pub use pageferry_engine::{PageState, Placement};
pub use pageferry_soft as soft;
pub use pin::{DetachedPin, Pin, Segment};
pub use serve::Server;
pub use session::Session;
pub use stats::{Counter, Stats};
pub use view::{View, ViewSummary};
