//! Caches.

use std::ffi::{c_char, c_int};
use std::sync::Arc;

use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{Cache, CacheConfig};

use crate::border::{Failure, call, path, prepare, put};
use crate::handles::Table;

/// The version of this interface: what is compiled against one runs with every library whose major number
/// (these 16 bits shifted right) is the same and whose minor number (the lower 16 bits) is not lower.
pub const PF_ABI_VERSION: u32 = 1;

/// A page cache in one device's memory.
pub struct pf_cache {
    _private: [u8; 0],
}

pub(crate) struct CacheHandle {
    pub(crate) cache: Cache,
    /// Addresses of its pins are of this process's memory.
    pub(crate) in_memory: bool,
}

pub(crate) static CACHES: Table<pf_cache, CacheHandle> = Table::new("cache");

/// The version of the interface that this library has: its PF_ABI_VERSION.
#[unsafe(no_mangle)]
pub extern "C" fn pf_abi_version() -> u32 {
    PF_ABI_VERSION
}

/// The version of this library, for people: "0.1.0". Valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn pf_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Makes a cache of this process's own, on a software device of so many bytes of memory, in frames of
/// frame_bytes: a power of two from 65536 to 67108864, or 0 for the usual 2097152.
///
/// -EINVAL: there is no such device; -ENOMEM: no memory for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_cache_open(
    device_memory_bytes: u64,
    frame_bytes: u64,
    cache: *mut *mut pf_cache,
) -> c_int {
    call(|| {
        // SAFETY: NULL or a place for a handle, as the header asks for.
        unsafe { prepare(cache) }?;
        let usual = SoftConfig::default();
        let soft = SoftConfig {
            frame_bytes: if frame_bytes == 0 { usual.frame_bytes } else { frame_bytes },
            capacity_bytes: device_memory_bytes,
            ..usual
        };
        let device = SoftDevice::new(soft).map_err(|error| match error {
            pageferry::soft::ConfigError::Memory { source, .. } => {
                let errno = source.raw_os_error().unwrap_or(libc::ENOMEM);
                Failure::from(pageferry::Error::Os { what: "making the device".into(), errno })
            }
            error => Failure::invalid(error.to_string()),
        })?;
        let opened = Cache::new(Arc::new(device), CacheConfig::default())?;
        // SAFETY: as above.
        unsafe { put(cache, CACHES.add(CacheHandle { cache: opened, in_memory: false })) };
        Ok(())
    })
}

/// Connects to the daemon that listens at a socket: its copies are shared with every other process that uses it,
/// and stay when this one ends. When the daemon goes, calls fail with -ECONNRESET and what was held is gone;
/// what had been released is safe. Connect again.
///
/// -ENOENT, -ECONNREFUSED: nobody listens there; -EUSERS: the daemon has no room; -EPROTO: it is of another release.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_cache_connect(
    socket: *const c_char,
    cache: *mut *mut pf_cache,
) -> c_int {
    call(|| {
        // SAFETY: NULL or a place for a handle, as the header asks for.
        unsafe { prepare(cache) }?;
        // SAFETY: NULL or a string, as the header asks for.
        let connected = Cache::connect(unsafe { path(socket) }?)?;
        // SAFETY: as for `prepare`.
        unsafe { put(cache, CACHES.add(CacheHandle { cache: connected, in_memory: true })) };
        Ok(())
    })
}

/// Writes what only the device has of all files back to them (to the page cache: pf_file_sync() makes it durable).
/// Waits for write pins over such bytes. `written` gets the number of bytes, if it is not NULL.
///
/// -EDEADLK: this thread holds such a pin; what writing a file fails with: the others are written all the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_cache_flush(cache: *const pf_cache, written: *mut u64) -> c_int {
    call(|| {
        let bytes = CACHES.get(cache)?.cache.flush()?;
        // SAFETY: NULL or a place for a number, as the header asks for.
        unsafe { put(written, bytes) };
        Ok(())
    })
}

/// Ends a handle. The cache itself goes with its last file, pin and mapping; what only the device has is
/// written back then, which has nobody to tell of an error: pf_cache_flush() or pf_file_close() before has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_cache_close(cache: *mut pf_cache) -> c_int {
    call(|| CACHES.take(cache).map(drop))
}
