//! Changes of a file by a system call: what the engine must know of each, and the call.

use std::io;
use std::ops::Range;

use pageferry_engine::{FileKey, Request};
use pageferry_linux::HostFile;

use crate::service::FileChange;

impl FileChange<'_> {
    /// For messages.
    pub(super) fn what(&self) -> &'static str {
        match self {
            FileChange::Write { .. } => "write",
            FileChange::SetLen(_) => "truncate",
            FileChange::PunchHole(_) => "punch",
            FileChange::ZeroRange { .. } => "zero-range",
            FileChange::Allocate { .. } => "allocate",
            FileChange::CollapseRange(_) => "collapse",
            FileChange::InsertRange(_) => "insert",
        }
    }

    /// The bytes whose content changes.
    pub(super) fn range(&self) -> Range<u64> {
        match self {
            FileChange::Write { offset, bytes } => *offset..offset + bytes.len() as u64,
            FileChange::SetLen(bytes) => *bytes..*bytes,
            FileChange::PunchHole(range) | FileChange::ZeroRange { range, .. } => range.clone(),
            // Contents stay.
            FileChange::Allocate { range, .. } => range.start..range.start,
            // Everything behind moves.
            FileChange::CollapseRange(range) | FileChange::InsertRange(range) => {
                range.start..u64::MAX
            }
        }
    }

    /// For the engine, which knows the file's size to be `known`.
    pub(super) fn request(&self, file: FileKey, known: Option<u64>) -> Request {
        let range = self.range();
        let resizes = match self {
            FileChange::SetLen(bytes) => return Request::Resize { file, bytes: *bytes },
            FileChange::Write { .. } => known.is_none_or(|bytes| range.end > bytes),
            FileChange::PunchHole(_) => false,
            FileChange::ZeroRange { keep_size, .. } | FileChange::Allocate { keep_size, .. } => {
                !keep_size
            }
            FileChange::CollapseRange(_) | FileChange::InsertRange(_) => true,
        };
        Request::Change { file, range, resizes }
    }

    /// Makes the call.
    pub(super) fn make(&self, io: &HostFile) -> io::Result<()> {
        match self {
            FileChange::Write { offset, bytes } => {
                io.write_at(bytes, *offset).map_err(|e| e.source)
            }
            FileChange::SetLen(bytes) => io.set_len(*bytes),
            FileChange::PunchHole(range) => io.punch_hole(range.clone()),
            FileChange::ZeroRange { range, keep_size } => io.zero_range(range.clone(), *keep_size),
            FileChange::Allocate { range, keep_size } => io.allocate(range.clone(), *keep_size),
            FileChange::CollapseRange(range) => io.collapse_range(range.clone()),
            FileChange::InsertRange(range) => io.insert_range(range.clone()),
        }
    }
}
