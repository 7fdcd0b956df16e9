//! The private buffer between mapped memory and the caller's.
//!
//! The caller's memory may be of any kind, also a page of a mapping that is away and whose coming home
//! needs this very device or window: it is touched only with no lock held.

use pageferry_device::PAGE_BYTES;

/// Bytes accessed under a lock at once: enough to make the lock's cost vanish, few enough that another
/// access of the same data is not held up, and that the buffer stays in the processor's cache.
pub(crate) const PIECE_BYTES: u64 = 16 * PAGE_BYTES;
/// Accesses up to this size, which are most, need no buffer from the heap.
const SMALL_BYTES: usize = 256;

/// A private buffer for pieces of an access.
#[expect(clippy::large_enum_variant, reason = "the small one is there to keep off the heap")]
pub(crate) enum Bounce {
    Small([u8; SMALL_BYTES]),
    Large(Vec<u8>),
}

impl Bounce {
    /// For an access of `len` bytes.
    pub(crate) fn of(len: usize) -> Bounce {
        if len <= SMALL_BYTES {
            Bounce::Small([0; SMALL_BYTES])
        } else {
            Bounce::Large(vec![0; len.min(PIECE_BYTES as usize)])
        }
    }

    pub(crate) fn first(&mut self, len: usize) -> &mut [u8] {
        match self {
            Bounce::Small(bytes) => &mut bytes[..len],
            Bounce::Large(bytes) => &mut bytes[..len],
        }
    }
}
