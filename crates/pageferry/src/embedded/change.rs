//! Changes of a file by a system call: what the engine must know of each, and the call.

use std::io;
use std::ops::Range;

use pageferry_engine::{FileKey, Request};
use pageferry_linux::HostFile;

use crate::service::FileChange;

/// Bytes of another process's memory that are in ours at once.
const PIECE_BYTES: u64 = 1 << 20;

impl FileChange<'_> {
    /// For messages.
    pub(super) fn what(&self) -> &'static str {
        match self {
            FileChange::Write { .. } | FileChange::WriteMemory { .. } => "write",
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
            FileChange::WriteMemory { offset, memory } => {
                *offset..offset.saturating_add(memory.len())
            }
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
            FileChange::Write { .. } | FileChange::WriteMemory { .. } => {
                known.is_none_or(|bytes| range.end > bytes)
            }
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
            FileChange::WriteMemory { offset, memory } => {
                let mut piece = vec![0; memory.len().min(PIECE_BYTES) as usize];
                let mut done = 0;
                while done < memory.len() {
                    let piece = &mut piece[..(memory.len() - done).min(PIECE_BYTES) as usize];
                    memory.read_at(piece, done)?;
                    io.write_at(piece, offset + done).map_err(|e| e.source)?;
                    done += piece.len() as u64;
                }
                Ok(())
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
