//! What the device stored, beside a message.
//!
//! Stores can be many and large, so they travel in a sealed memory file, whose descriptor comes with the message:
//!
//! ```text
//! runs × { offset in the file: u64, bytes: u64 }     little-endian
//! the bytes of the first run, of the second, ...     one after another
//! ```
//!
//! and nothing behind. The runs ascend and do not overlap, and each is held by one pin: they are the pages that the
//! device stored to, as far as the pin holds them.

use serde::{Deserialize, Serialize};

use crate::{FileId, STORE_RUNS_MAX, Span};

/// Bytes of one record.
const RECORD_BYTES: usize = 16;

/// Says what the memory file holds that comes with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stores {
    /// Which file was stored to.
    pub file: FileId,
    /// Runs, at most [`STORE_RUNS_MAX`]; who has more tells of them in several requests.
    pub runs: u64,
    /// Bytes of all runs together.
    pub bytes: u64,
}

impl Stores {
    /// Bytes of the records at the memory file's start.
    #[must_use]
    pub fn record_bytes(self) -> u64 {
        self.runs.saturating_mul(RECORD_BYTES as u64)
    }
}

/// Records that are no runs of stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRuns {
    /// Their bytes are no whole number of records.
    #[error("{bytes} bytes are no whole number of records")]
    Partial {
        /// How many there are.
        bytes: usize,
    },
    /// There are more than [`STORE_RUNS_MAX`].
    #[error("more than {STORE_RUNS_MAX} runs")]
    TooMany,
    /// One has no bytes.
    #[error("run {run} is empty")]
    Empty {
        /// Which, from 0.
        run: usize,
    },
    /// One ends where no file does.
    #[error("run {run} ends beyond the end of any file")]
    Overflow {
        /// Which, from 0.
        run: usize,
    },
    /// One begins before the end of the one before.
    #[error("run {run} begins before the end of the one before it")]
    Disorder {
        /// Which, from 0.
        run: usize,
    },
}

/// The records of runs, for the start of the memory file.
///
/// # Errors
/// They are not as runs must be.
pub fn encode_runs(runs: &[Span]) -> Result<Vec<u8>, BadRuns> {
    check(runs.iter().map(|run| (run.start(), run.len())))?;
    let record = |run: &Span| [run.start().to_le_bytes(), run.len().to_le_bytes()].concat();
    Ok(runs.iter().flat_map(record).collect())
}

/// The runs of the records that a memory file begins with; the [sum](Span::len) of their bytes, which cannot
/// overflow, follows in it.
///
/// # Errors
/// They are not as runs must be. It allocates no more than they take.
pub fn parse_runs(records: &[u8]) -> Result<Vec<Span>, BadRuns> {
    let (records, rest) = records.as_chunks::<RECORD_BYTES>();
    if !rest.is_empty() {
        return Err(BadRuns::Partial { bytes: records.len() * RECORD_BYTES + rest.len() });
    }
    let words = |record: &[u8; RECORD_BYTES]| {
        let (start, bytes) = record.split_at(8);
        let word =
            |half: &[u8]| half.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        (word(start), word(bytes))
    };
    check(records.iter().map(words))
}

/// Runs of starts and lengths, if they are as they must be.
fn check(runs: impl ExactSizeIterator<Item = (u64, u64)>) -> Result<Vec<Span>, BadRuns> {
    if runs.len() as u64 > STORE_RUNS_MAX {
        return Err(BadRuns::TooMany);
    }
    let mut end = 0;
    let span = |(run, (start, bytes)): (usize, (u64, u64))| {
        if bytes == 0 {
            return Err(BadRuns::Empty { run });
        }
        if start < end {
            return Err(BadRuns::Disorder { run });
        }
        let last = start.checked_add(bytes).filter(|end| i64::try_from(*end).is_ok());
        end = last.ok_or(BadRuns::Overflow { run })?;
        Span::new(start..end).ok_or(BadRuns::Overflow { run })
    };
    runs.enumerate().map(span).collect()
}
