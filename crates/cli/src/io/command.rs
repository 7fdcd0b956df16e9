//! What a line asks for, and what comes of it.

use std::ops::Range;

use pageferry::Error;
use pageferry::device::DeviceError;
use serde_json::{Map, Value};

use crate::failure::Failure;

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
    MRead { verbose: bool, range: Option<Range<u64>> },
    MWrite { byte: u8, range: Option<Range<u64>> },
    Munmap,
    Msync { waits: bool, range: Option<Range<u64>> },
    PRead { look: Look, range: Range<u64> },
    PWrite { fill: Fill, range: Range<u64> },
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

/// How to read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Look {
    pub(super) verbose: bool,
    pub(super) quiet: bool,
    pub(super) buffer: Option<u64>,
}

/// What to write, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fill {
    pub(super) byte: u8,
    pub(super) quiet: bool,
    pub(super) buffer: Option<u64>,
}

/// The bytes are still on the device: only their way home failed.
pub(super) fn is_write_back(error: &Error) -> bool {
    matches!(
        error,
        Error::File { what: "write-back", .. } | Error::Device(DeviceError::CopyOut { .. })
    )
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let mut message = error.to_string();
        if is_write_back(&error) {
            message += "; the bytes are kept on the device, and flush tries again";
        }
        Failure::told(&error, message)
    }
}

/// A command that worked: lines for people, fields for programs.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    /// Bytes to show, and where they begin.
    pub(super) dump: Option<(u64, Vec<u8>)>,
    pub(super) lines: Vec<String>,
    pub(super) fields: Map<String, Value>,
}

impl Reply {
    pub(super) fn line(text: impl Into<String>) -> Reply {
        Reply { lines: vec![text.into()], ..Reply::default() }
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Reply {
        self.fields.insert(name.into(), value.into());
        self
    }

    pub(super) fn quiet(mut self, quiet: bool) -> Reply {
        if quiet {
            (self.dump, self.lines) = (None, Vec::new());
        }
        self
    }
}
