//! Mappings.

use std::ffi::{c_int, c_void};

use pageferry::Map;

use crate::border::{Failure, call, end_of, prepare, put};
use crate::file::{FILES, pf_file, writable};
use crate::handles::Table;

/// A mapping of a range of a file into this process.
pub struct pf_map {
    _private: [u8; 0],
}

struct MapHandle {
    map: Map,
    /// Bytes of the mapping before the one asked for.
    before: usize,
}

static MAPS: Table<pf_map, MapHandle> = Table::new("mapping");

/// Maps a range of a file, as mmap(2) with MAP_SHARED does, but coherent with the device: a touch of bytes that only
/// the device has, or that are under a write pin, waits until they are in the file. PF_READ or PF_READ | PF_WRITE.
///
/// A touch that could only wait for ever (for a pin of the same thread), of bytes that cannot be brought home, or past
/// the end of the file, is a SIGBUS. A child made by fork(2) does not have the mapping.
///
/// -EINVAL: an empty range, or one that cannot be mapped; -EACCES: the file is not open for writing; -EOPNOTSUPP:
/// the system has no userfaultfd for this process; -ENOMEM.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_file_map(
    file: *const pf_file,
    offset: u64,
    length: u64,
    flags: u32,
    map: *mut *mut pf_map,
) -> c_int {
    call(|| {
        // SAFETY: NULL or a place for a handle, as the header asks for.
        unsafe { prepare(map) }?;
        let file = FILES.get(file)?;
        let range = offset..end_of(offset, length)?;
        let mapped = file.file.map(range, writable(flags)?)?;
        let before = usize::try_from(offset - mapped.offset())
            .map_err(|_| Failure::invalid(format!("a mapping at {offset}")))?;
        // SAFETY: as for `prepare`.
        unsafe { put(map, MAPS.add(MapHandle { map: mapped, before })) };
        Ok(())
    })
}

/// Where the byte at the offset asked for is. Valid until pf_map_close().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_map_address(map: *const pf_map, address: *mut *mut c_void) -> c_int {
    call(|| {
        let map = MAPS.get(map)?;
        // SAFETY: NULL or a place for a pointer, as the header asks for.
        unsafe { put(address, map.map.as_ptr().wrapping_add(map.before).cast()) };
        Ok(())
    })
}

/// How many bytes are mapped from there on: what was asked for, and the rest of the last page.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_map_length(map: *const pf_map, bytes: *mut u64) -> c_int {
    call(|| {
        let map = MAPS.get(map)?;
        // SAFETY: NULL or a place for a number, as the header asks for.
        unsafe { put(bytes, (map.map.len() - map.before) as u64) };
        Ok(())
    })
}

/// Unmaps; the handle is gone whatever the result. Nobody is to touch the memory any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_map_close(map: *mut pf_map) -> c_int {
    call(|| match std::sync::Arc::try_unwrap(MAPS.take(map)?) {
        Ok(last) => Ok(last.map.unmap()?),
        Err(_in_use) => Ok(()),
    })
}
