//! What bytes an operation is about, for whoever looks back at a sequence.

use std::ops::Range;

use crate::op::{Access, Act, Op};

impl Op {
    /// The bytes concerned, up to the largest offset if those behind move; `None` if the operation
    /// does not say, for it names a slot or means everything.
    pub(crate) fn touched(&self) -> Option<Range<u64>> {
        let span = |at: u64, len: u64| Some(at..at.saturating_add(len));
        match self {
            Op::By(_, access) => match *access {
                Access::Read { at, len }
                | Access::Write { at, len, .. }
                | Access::Direct { at, len, .. }
                | Access::CopyFrom { at, len, .. }
                | Access::Punch { at, len }
                | Access::Zero { at, len, .. }
                | Access::Allocate { at, len, .. }
                | Access::Map { at, len, .. }
                | Access::Load { at, len, .. }
                | Access::Store { at, len, .. } => span(at, len),
                Access::Resize { size } | Access::Truncate { size } => Some(size..u64::MAX),
                Access::Collapse { at, .. } | Access::Insert { at, .. } => Some(at..u64::MAX),
                Access::Empty {} => Some(0..u64::MAX),
                Access::Sync {} | Access::Hold {} | Access::LetGo {} => Some(0..0),
                // An append lies wherever the end was.
                Access::Append { .. } | Access::Unmap { .. } => None,
            },
            Op::Act(act) => match *act {
                Act::Pin { at, len, .. }
                | Act::DeviceLoad { at, len, .. }
                | Act::DeviceStore { at, len, .. }
                | Act::See { at, len }
                | Act::Stint { at, len, .. }
                | Act::View { at, len, .. }
                | Act::Prefetch { at, len }
                | Act::Evict { at, len }
                | Act::Flush { at, len } => span(at, len),
                Act::Poke { at, .. } => span(at, 8),
                _ => None,
            },
        }
    }

    /// It may change what the file shows.
    pub(crate) fn changes(&self) -> bool {
        match self {
            Op::By(_, access) => !matches!(
                access,
                Access::Read { .. }
                    | Access::Load { .. }
                    | Access::Map { .. }
                    | Access::Unmap { .. }
                    | Access::Sync {}
                    | Access::Hold {}
                    | Access::LetGo {}
            ),
            Op::Act(act) => matches!(
                act,
                Act::DeviceStore { .. }
                    | Act::Release { .. }
                    | Act::Stint { .. }
                    | Act::View { .. }
                    | Act::Poke { .. }
            ),
        }
    }
}
