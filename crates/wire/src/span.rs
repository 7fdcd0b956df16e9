//! A stretch of a file.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A stretch of a file, in bytes. The end is not part of it; `u64::MAX` stands for "to the end of the file"
/// where the API says so.
///
/// # Invariants
/// It does not end before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u64, u64)", into = "(u64, u64)")]
pub struct Span {
    start: u64,
    end: u64,
}

impl Span {
    /// The span of a range; `None` if the range ends before it begins.
    #[must_use]
    pub fn new(range: Range<u64>) -> Option<Span> {
        (range.start <= range.end).then_some(Span { start: range.start, end: range.end })
    }

    /// The span of a range that goes into an error message: one that ends before it begins becomes an empty one.
    #[must_use]
    pub fn or_empty(range: Range<u64>) -> Span {
        Span { start: range.start, end: range.end.max(range.start) }
    }

    /// The first byte.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// The first byte behind it.
    #[must_use]
    pub fn end(self) -> u64 {
        self.end
    }

    /// Its bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// It has no bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// As a range.
    #[must_use]
    pub fn range(self) -> Range<u64> {
        self.start..self.end
    }
}

impl TryFrom<(u64, u64)> for Span {
    type Error = &'static str;

    fn try_from((start, end): (u64, u64)) -> Result<Span, &'static str> {
        Span::new(start..end).ok_or("a range that ends before it begins")
    }
}

impl From<Span> for (u64, u64) {
    fn from(span: Span) -> (u64, u64) {
        (span.start, span.end)
    }
}
