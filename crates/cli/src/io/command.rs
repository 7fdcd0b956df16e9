//! What a line asks for, and what comes of it.

use std::ops::Range;

use serde_json::{Map, Value};

/// One command.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Command {
    Pin { write: bool, overwrite: bool, timeout: Option<f64>, range: Range<u64> },
    Unpin { keep: bool, id: Option<u32> },
    DRead { verbose: bool, range: Range<u64> },
    DWrite { byte: u8, range: Range<u64> },
    DSum { range: Range<u64> },
    DAdd { n: u32, range: Range<u64> },
    Mmap { read_only: bool, range: Range<u64> },
    MRead { verbose: bool, range: Range<u64> },
    MWrite { byte: u8, range: Range<u64> },
    Munmap,
    Msync,
    PRead { verbose: bool, range: Range<u64> },
    PWrite { byte: u8, range: Range<u64> },
    Fsync,
    Truncate { bytes: u64 },
    Punch { range: Range<u64> },
    Zero { keep_size: bool, range: Range<u64> },
    Allocate { keep_size: bool, range: Range<u64> },
    Collapse { range: Range<u64> },
    Insert { range: Range<u64> },
    Prefetch { range: Range<u64> },
    Evict { range: Range<u64> },
    Flush { range: Range<u64> },
    Where { range: Range<u64> },
    Stats,
    Fail { point: String, count: u32 },
    Sleep { seconds: f64 },
    Shell { command: String },
    Help,
}

/// A command that failed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    pub(super) kind: String,
    pub(super) errno: i32,
    pub(super) message: String,
}

impl Failure {
    /// The line itself is wrong.
    pub(super) fn usage(message: impl Into<String>) -> Failure {
        Failure { kind: "usage".into(), errno: libc::EINVAL, message: message.into() }
    }
}

impl From<pageferry::Error> for Failure {
    fn from(error: pageferry::Error) -> Failure {
        Failure { kind: error.kind().into(), errno: error.errno(), message: error.to_string() }
    }
}

/// A command that worked: lines for people, fields for programs.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    pub(super) lines: Vec<String>,
    pub(super) fields: Map<String, Value>,
}

impl Reply {
    pub(super) fn line(text: impl Into<String>) -> Reply {
        Reply { lines: vec![text.into()], fields: Map::new() }
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Reply {
        self.fields.insert(name.into(), value.into());
        self
    }
}
