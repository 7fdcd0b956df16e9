//! Bytes on their way, in pieces: a range may be larger than memory.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use pageferry::{Cache, Error, Result, View};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::output::hex;

/// Bytes that the host moves at a time.
const CHUNK: u64 = 1 << 20;
/// The largest buffer that -b can ask for.
const BUFFER_MAX: u64 = 64 << 20;

/// An empty buffer with room for so much, or an error where memory is not to be had.
fn room(len: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let fits = usize::try_from(len).is_ok_and(|n| bytes.try_reserve_exact(n).is_ok());
    let refused = || Error::InvalidArgument(format!("{len} bytes do not fit into memory"));
    if fits { Ok(bytes) } else { Err(refused()) }
}

/// A buffer for a range, and the pieces of the range that fit it.
fn pieces(
    range: &Range<u64>,
    asked: Option<u64>,
) -> Result<(Vec<u8>, impl Iterator<Item = Range<u64>>)> {
    let step = asked.unwrap_or(CHUNK).min(BUFFER_MAX);
    let len = step.min(range.end - range.start);
    let mut buffer = room(len)?;
    buffer.resize(len as usize, 0);
    let (mut at, end) = (range.start, range.end);
    let pieces = std::iter::from_fn(move || {
        let piece = at..at.saturating_add(step).min(end);
        at = piece.end;
        (!piece.is_empty()).then_some(piece)
    });
    Ok((buffer, pieces))
}

/// Reads a range in pieces, until one is short. What was read if it is to be kept, and how much.
pub(super) fn pull(
    range: &Range<u64>,
    buffer: Option<u64>,
    keep: bool,
    mut read: impl FnMut(&mut [u8], u64) -> Result<usize>,
) -> Result<(Option<Vec<u8>>, u64)> {
    let mut kept = if keep { Some(room(range.end - range.start)?) } else { None };
    let (mut buffer, pieces) = pieces(range, buffer)?;
    let mut done = 0;
    for piece in pieces {
        let wanted = (piece.end - piece.start) as usize;
        let n = read(&mut buffer[..wanted], piece.start)?;
        if let Some(kept) = &mut kept {
            kept.extend_from_slice(&buffer[..n]);
        }
        done += n as u64;
        if n < wanted {
            break;
        }
    }
    Ok((kept, done))
}

/// Writes a range of equal bytes in pieces.
pub(super) fn push(
    range: &Range<u64>,
    buffer: Option<u64>,
    byte: u8,
    mut write: impl FnMut(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let (mut buffer, pieces) = pieces(range, buffer)?;
    buffer.fill(byte);
    for piece in pieces {
        write(&buffer[..(piece.end - piece.start) as usize], piece.start)?;
    }
    Ok(())
}

/// What the device reads, if it is to be kept.
pub(super) fn read(view: &View<'_>, range: &Range<u64>, keep: bool) -> Result<Option<Vec<u8>>> {
    let mut kept = if keep { Some(room(range.end - range.start)?) } else { None };
    view.visit(range.clone(), &mut |piece| {
        if let Some(kept) = &mut kept {
            kept.extend_from_slice(piece);
        }
    })?;
    Ok(kept)
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
    let failed = AtomicBool::new(false);
    cache.launch(whole.div_ceil(GROUP_BYTES), |group| {
        if failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let start = range.start + group * GROUP_BYTES;
        let end = (start + GROUP_BYTES).min(range.start + whole);
        let result = add_group(view, start..end, n);
        failed.fetch_or(result.is_err(), Ordering::Relaxed);
        result
    })
}

fn add_group(view: &View<'_>, range: Range<u64>, n: u32) -> Result<()> {
    // A range that is not aligned has elements that lie across pages: work on a private copy.
    let mut bytes = vec![0; (range.end - range.start) as usize];
    view.read(range.start, &mut bytes)?;
    for element in bytes.as_chunks_mut::<4>().0 {
        *element = u32::from_le_bytes(*element).wrapping_add(n).to_le_bytes();
    }
    view.write(range.start, &bytes)
}
