//! What the d-commands do through a view.

use std::ops::Range;

use pageferry::{Cache, Error, Result, View};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::output::hex;

/// A zeroed buffer, or an error where memory is not to be had.
pub(super) fn buffer(len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let fits = usize::try_from(len).ok().and_then(|n| bytes.try_reserve_exact(n).ok().map(|()| n));
    match fits {
        Some(n) if len < 1 << 40 => {
            bytes.resize(n, 0);
            Ok(bytes)
        }
        _ => Err(Error::InvalidArgument(format!("{len} bytes do not fit into memory"))),
    }
}

pub(super) fn read(view: &View<'_>, range: &Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    view.visit(range.clone(), &mut |piece| bytes.extend_from_slice(piece))?;
    Ok(bytes)
}

pub(super) fn fill(view: &View<'_>, range: &Range<u64>, byte: u8) -> Result<()> {
    view.update(range.clone(), &mut |piece| piece.fill(byte))
}

/// The digest of a range, computed by one group of a kernel.
pub(super) fn sha256(cache: &Cache, view: &View<'_>, range: &Range<u64>) -> Result<String> {
    let digest = Mutex::new(Sha256::new());
    cache.launch(1, |_| {
        let mut digest = digest.lock();
        view.visit(range.clone(), &mut |piece| digest.update(piece))
    })?;
    Ok(hex(&digest.into_inner().finalize()))
}

/// Adds `n` to each whole u32 of a range, by many groups.
pub(super) fn add(cache: &Cache, view: &View<'_>, range: &Range<u64>, n: u32) -> Result<()> {
    const GROUP_BYTES: u64 = 256 << 10;
    let whole = (range.end - range.start) / 4 * 4;
    cache.launch(whole.div_ceil(GROUP_BYTES), |group| {
        let start = range.start + group * GROUP_BYTES;
        let end = (start + GROUP_BYTES).min(range.start + whole);
        // A range that is not aligned has elements that lie across pages: work on a private copy.
        let mut bytes = buffer(end - start)?;
        view.read(start, &mut bytes)?;
        for element in bytes.as_chunks_mut::<4>().0 {
            *element = u32::from_le_bytes(*element).wrapping_add(n).to_le_bytes();
        }
        view.write(start, &bytes)
    })
}
