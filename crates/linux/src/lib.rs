//! The host side of the cache is the kernel's page cache; this crate is the only place that talks
//! to the kernel.
//!
//! Nothing here knows what a device is, or decides anything. There is a file ([`HostFile`]), a
//! mapping of it parts of which can be taken away and brought home ([`FileMap`]), the descriptor
//! that tells who waits for what is away ([`Uffd`]), a record of the program's own stores
//! ([`StoreTracker`]), limits and a check of what this system can do ([`probe()`]). For a cache that serves
//! other processes there are sockets ([`Listener`], [`Socket`]) and bytes that nobody can change any more
//! ([`SealedMemory`]).
//!
//! All `unsafe` of the host side is here, each block with its proof; what the crate offers is safe
//! to call. What the kernel does was tried out, not looked up, and is written down at the head of
//! the module that relies on it, with a test that fails when it changes.
//!
//! ```
//! use std::sync::Arc;
//! use pageferry_linux::{FileMap, HostFile, page_bytes};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("file");
//! std::fs::write(&path, vec![7; 2 * page_bytes()])?;
//! let file = Arc::new(HostFile::open(&path, true)?);
//! let map = FileMap::new(&file, 0, 2 * page_bytes(), true)?;
//! map.store(16, 0x0102_0304_u32)?;
//! let mut seen = [0; 4];
//! file.read_at(&mut seen, 16)?;
//! assert_eq!(u32::from_ne_bytes(seen), 0x0102_0304);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("pageferry-linux is for 64-bit Linux");

mod abi;
mod call;
mod fanotify;
mod file;
mod fork;
mod gate;
mod lease;
pub mod limits;
mod map;
mod page;
mod probe;
mod room;
mod sealed;
mod served;
mod socket;
mod store_tracker;
mod tid;
mod uffd;
mod watch;

pub use call::Call;
pub use file::{FileId, FileKind, FileStamp, HostFile, OpenError, Place, WriteError, newest_loop};
pub use gate::{Access, Gate};
pub use lease::LeaseBreaks;
pub use map::{AccessError, FileMap, MapError, Scalar, StoredPages};
pub use page::page_bytes;
pub use probe::{Capability, probe};
pub use sealed::{MemoryWriter, NotSealed, SealedMemory};
pub use served::{Served, file_system_served, file_system_served_to};
pub use socket::{ListenError, Listener, Peer, Received, Socket, notify_systemd};
pub use store_tracker::StoreTracker;
pub use tid::{current_tid, current_uid};
pub use uffd::{Event, Fault, Uffd, UffdError, UffdMode, Wakeup};
pub use watch::{Heard, Watch, WatchKey};
