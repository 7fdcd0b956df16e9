//! Copies from and to memory that others access at the same time: by relaxed atomic accesses, which
//! race with nothing, of words where there are whole ones.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

const WORD: usize = size_of::<u64>();

/// Fills `to` from memory that may be changing; then it may have some of both.
///
/// # Safety
/// `to.len()` bytes from `from` on are readable, and stay so during the call.
pub(crate) unsafe fn load(from: *const u8, to: &mut [u8]) {
    let (head, rest) = to.split_at_mut(from.align_offset(WORD).min(to.len()));
    let (words, tail) = rest.as_chunks_mut::<WORD>();
    let mut at = from.cast_mut();
    let bytes = |bytes: &mut [u8], at: &mut *mut u8| {
        for to in bytes {
            // SAFETY: readable by the caller's promise; loaded only.
            let from = unsafe { AtomicU8::from_ptr(*at) };
            *to = from.load(Ordering::Relaxed);
            *at = at.wrapping_add(1);
        }
    };
    bytes(head, &mut at);
    for to in words {
        // SAFETY: as above, and aligned, behind the head.
        let from = unsafe { AtomicU64::from_ptr(at.cast()) };
        *to = from.load(Ordering::Relaxed).to_ne_bytes();
        at = at.wrapping_add(WORD);
    }
    bytes(tail, &mut at);
}

/// Copies `from` to memory that others may be looking at.
///
/// # Safety
/// `from.len()` bytes from `to` on are writable, and stay so during the call.
pub(crate) unsafe fn store(from: &[u8], to: *mut u8) {
    let (head, rest) = from.split_at(to.align_offset(WORD).min(from.len()));
    let (words, tail) = rest.as_chunks::<WORD>();
    let mut at = to;
    let bytes = |bytes: &[u8], at: &mut *mut u8| {
        for from in bytes {
            // SAFETY: writable by the caller's promise.
            let to = unsafe { AtomicU8::from_ptr(*at) };
            to.store(*from, Ordering::Relaxed);
            *at = at.wrapping_add(1);
        }
    };
    bytes(head, &mut at);
    for from in words {
        // SAFETY: as above, and aligned, behind the head.
        let to = unsafe { AtomicU64::from_ptr(at.cast()) };
        to.store(u64::from_ne_bytes(*from), Ordering::Relaxed);
        at = at.wrapping_add(WORD);
    }
    bytes(tail, &mut at);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_and_length_is_copied_whole_and_nothing_beside_it() {
        let source: Vec<u8> = (1..=40).collect();
        for (start, len) in (0..16).flat_map(|start| (0..24).map(move |len| (start, len))) {
            let mut to = [0; 24];
            // SAFETY: inside of `source`.
            unsafe { load(source[start..].as_ptr(), &mut to[..len]) };
            assert_eq!((&to[..len], &to[len..]), (&source[start..start + len], &[0; 24][len..]));
            let mut to = [0; 41];
            // SAFETY: inside of `to`.
            unsafe { store(&source[..len], to[start..].as_mut_ptr()) };
            assert_eq!(&to[start..start + len], &source[..len]);
            assert_eq!(to.iter().filter(|byte| **byte != 0).count(), len);
        }
    }
}
