//! Single loads and stores, as the CPU makes them.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::{AccessError, FileMap};

/// An integer that the CPU loads and stores in one piece.
pub trait Scalar: Copy + sealed::Sealed {}

mod sealed {
    /// What only this module implements.
    pub trait Sealed: Sized {
        /// # Safety
        /// `from` must be aligned and, unless the access is stopped by a signal, readable.
        unsafe fn load(from: *mut u8) -> Self;
        /// # Safety
        /// `to` must be aligned and, unless the access is stopped by a signal, writable.
        unsafe fn store(self, to: *mut u8);
    }
}

macro_rules! scalar {
    ($($integer:ty => $atomic:ty),*) => {$(
        impl Scalar for $integer {}
        impl sealed::Sealed for $integer {
            unsafe fn load(from: *mut u8) -> $integer {
                // SAFETY: aligned and valid by the caller's word; memory that others change is only
                // accessed atomically. The reference lives for this access only.
                unsafe { <$atomic>::from_ptr(from.cast()) }.load(Ordering::Relaxed)
            }
            unsafe fn store(self, to: *mut u8) {
                // SAFETY: as for loading.
                unsafe { <$atomic>::from_ptr(to.cast()) }.store(self, Ordering::Relaxed);
            }
        }
    )*};
}
scalar!(u8 => AtomicU8, u16 => AtomicU16, u32 => AtomicU32, u64 => AtomicU64);

impl FileMap {
    /// Loads the value at `at`, a multiple of its size, in one piece (relaxed ordering).
    ///
    /// This is a plain CPU access: it waits if the page is away, and it **raises `SIGBUS`** if the
    /// page lies beyond the end of the file, or poisoned, as any access to mapped memory does.
    ///
    /// # Errors
    /// Not inside the map, or not aligned; [`AccessError::Forked`] in a child of the process that
    /// made the map.
    #[inline]
    pub fn load<T: Scalar>(&self, at: usize) -> Result<T, AccessError> {
        let from = self.place::<T>(at)?;
        // SAFETY: aligned and inside the map (checked), in the process that owns it (checked), where
        // it is mapped as long as `self` is borrowed; where there is no page the process gets a
        // signal, not a value.
        Ok(unsafe { T::load(from) })
    }

    /// Stores a value at `at`; otherwise as [`load`](FileMap::load).
    ///
    /// # Errors
    /// As [`load`](FileMap::load), or the map is for reading only.
    #[inline]
    pub fn store<T: Scalar>(&self, at: usize, value: T) -> Result<(), AccessError> {
        if !self.writable {
            return Err(AccessError::ReadOnly);
        }
        let to = self.place::<T>(at)?;
        // SAFETY: as for loading, and the map is writable.
        unsafe { value.store(to) };
        Ok(())
    }

    #[inline]
    fn place<T: Scalar>(&self, at: usize) -> Result<*mut u8, AccessError> {
        if !self.owner.is_current() {
            return Err(AccessError::Forked);
        }
        let size = size_of::<T>();
        if at.checked_add(size).is_none_or(|end| end > self.len) {
            return Err(AccessError::OutOfRange { at, len: size, map_len: self.len });
        }
        // The base is page-aligned, so the offset's alignment is the address's.
        if !at.is_multiple_of(size) {
            return Err(AccessError::Misaligned { at, size });
        }
        Ok(self.at(at))
    }
}
