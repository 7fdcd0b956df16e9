//! The library's terms in those of the wire, and back.

use std::borrow::Cow;

use pageferry_device::{DeviceError, DeviceInfo, FrameId};
use pageferry_linux::SealedMemory;
use pageferry_wire as wire;
use pageferry_wire::{DeviceFailure, Failure, Span};

use crate::service::FileChange;
use crate::{After, Coherence, Error, PageState, PinMode, Placement, Result, Session, Wait};

/// Words that errors carry, which the wire has as text.
const WORDS: [&str; 13] = [
    "load",
    "store",
    "read",
    "write",
    "write-back",
    "fsync",
    "statx",
    "truncate",
    "punch",
    "zero-range",
    "allocate",
    "collapse",
    "insert",
];

fn word(text: &str) -> &'static str {
    WORDS.into_iter().find(|word| *word == text).unwrap_or("a call")
}

/// A caller's range on its way; one that ends before it begins is refused as the engine does.
pub(crate) fn span(range: &std::ops::Range<u64>) -> Result<Span> {
    Span::new(range.clone()).ok_or_else(|| {
        let std::ops::Range { start, end } = range;
        Error::InvalidArgument(format!("the range {start}..{end} is empty or wraps"))
    })
}

pub(crate) fn mode_out(mode: PinMode) -> wire::Mode {
    match mode {
        PinMode::Read => wire::Mode::Read,
        PinMode::Write => wire::Mode::Write,
        PinMode::Overwrite => wire::Mode::Overwrite,
    }
}

pub(crate) fn mode_in(mode: wire::Mode) -> PinMode {
    match mode {
        wire::Mode::Read => PinMode::Read,
        wire::Mode::Write => PinMode::Write,
        wire::Mode::Overwrite => PinMode::Overwrite,
    }
}

pub(crate) fn wait_out(wait: Wait) -> wire::Wait {
    match wait {
        Wait::Block => wire::Wait::Block,
        Wait::Timeout(limit) => wire::Wait::Timeout(limit),
        Wait::Try => wire::Wait::Try,
    }
}

pub(crate) fn wait_in(wait: wire::Wait) -> Wait {
    match wait {
        wire::Wait::Block => Wait::Block,
        wire::Wait::Timeout(limit) => Wait::Timeout(limit),
        wire::Wait::Try => Wait::Try,
    }
}

pub(crate) fn after_out(after: After) -> wire::After {
    match after {
        After::WriteBack => wire::After::WriteBack,
        After::KeepAway => wire::After::KeepAway,
    }
}

pub(crate) fn after_in(after: wire::After) -> After {
    match after {
        wire::After::WriteBack => After::WriteBack,
        wire::After::KeepAway => After::KeepAway,
    }
}

pub(crate) fn change_out(change: &FileChange<'_>) -> Result<wire::Change> {
    Ok(match change {
        FileChange::Write { offset, bytes } => {
            wire::Change::Write { offset: *offset, bytes: bytes.to_vec() }
        }
        FileChange::WriteMemory { offset, memory } => {
            wire::Change::WriteMemory { offset: *offset, bytes: memory.len() }
        }
        FileChange::SetLen(bytes) => wire::Change::SetLen(*bytes),
        FileChange::PunchHole(range) => wire::Change::PunchHole(span(range)?),
        FileChange::ZeroRange { range, keep_size } => {
            wire::Change::ZeroRange { span: span(range)?, keep_size: *keep_size }
        }
        FileChange::Allocate { range, keep_size } => {
            wire::Change::Allocate { span: span(range)?, keep_size: *keep_size }
        }
        FileChange::CollapseRange(range) => wire::Change::CollapseRange(span(range)?),
        FileChange::InsertRange(range) => wire::Change::InsertRange(span(range)?),
    })
}

/// With the memory that came along.
pub(crate) fn change_in<'a>(
    change: &'a wire::Change,
    memory: Option<&'a SealedMemory>,
) -> Result<FileChange<'a>> {
    Ok(match change {
        wire::Change::Write { offset, bytes } => FileChange::Write { offset: *offset, bytes },
        wire::Change::WriteMemory { offset, .. } => {
            let none = || Error::Protocol("no memory came with the write".into());
            let memory = memory.ok_or_else(none)?;
            let end = offset.checked_add(memory.len());
            if end.is_none_or(|end| i64::try_from(end).is_err()) {
                return Err(Error::InvalidArgument("a write beyond the end of any file".into()));
            }
            FileChange::WriteMemory { offset: *offset, memory }
        }
        wire::Change::SetLen(bytes) => FileChange::SetLen(*bytes),
        wire::Change::PunchHole(span) => FileChange::PunchHole(span.range()),
        wire::Change::ZeroRange { span, keep_size } => {
            FileChange::ZeroRange { range: span.range(), keep_size: *keep_size }
        }
        wire::Change::Allocate { span, keep_size } => {
            FileChange::Allocate { range: span.range(), keep_size: *keep_size }
        }
        wire::Change::CollapseRange(span) => FileChange::CollapseRange(span.range()),
        wire::Change::InsertRange(span) => FileChange::InsertRange(span.range()),
    })
}

pub(crate) fn coherence_out(coherence: Coherence) -> wire::Coherence {
    match coherence {
        Coherence::Fixed => wire::Coherence::Fixed,
        Coherence::Proven => wire::Coherence::Proven,
        Coherence::Stamps => wire::Coherence::Stamps,
        Coherence::Unproven(why) => wire::Coherence::Unproven(why),
    }
}

pub(crate) fn coherence_in(coherence: wire::Coherence) -> Coherence {
    match coherence {
        wire::Coherence::Fixed => Coherence::Fixed,
        wire::Coherence::Proven => Coherence::Proven,
        wire::Coherence::Stamps => Coherence::Stamps,
        wire::Coherence::Unproven(why) => Coherence::Unproven(why),
    }
}

pub(crate) fn run_out(run: &Placement) -> wire::Run {
    let state = match run.state {
        PageState::Home => wire::PageState::Home,
        PageState::Copy => wire::PageState::Copy,
        PageState::Away => wire::PageState::Away,
    };
    wire::Run { span: Span::or_empty(run.range.clone()), state, pinned: run.pinned }
}

pub(crate) fn run_in(run: &wire::Run) -> Placement {
    let state = match run.state {
        wire::PageState::Home => PageState::Home,
        wire::PageState::Copy => PageState::Copy,
        wire::PageState::Away => PageState::Away,
    };
    Placement { range: run.span.range(), state, pinned: run.pinned }
}

pub(crate) fn session_in(session: wire::SessionUse) -> Session {
    let program = for_people(&session.program).into_owned();
    let wire::SessionUse { session: number, pid, uid, files, pins, pinned_bytes, requests, .. } =
        session;
    Session { number, pid, uid, program, files, pins, pinned_bytes, requests }
}

pub(crate) fn device_out(info: &DeviceInfo) -> wire::Device {
    wire::Device {
        name: info.name.clone(),
        frame_bytes: info.frame_bytes,
        capacity_frames: info.capacity_frames,
        region_bytes: info.region_bytes,
        dirty_bits: info.dirty_bits,
    }
}

pub(crate) fn failure(error: Error) -> Failure {
    let span = Span::or_empty;
    match error {
        Error::InvalidArgument(text) => Failure::InvalidArgument(text),
        Error::NotRegularFile { name, what } => Failure::NotRegularFile { name, what },
        Error::PastEof { range, file_bytes } => Failure::PastEof { range: span(range), file_bytes },
        Error::FileShrunk { range, file_bytes, lost_bytes } => {
            Failure::FileShrunk { range: span(range), file_bytes, lost_bytes }
        }
        Error::ReadOnly(what) => Failure::ReadOnly(what),
        Error::OutsidePin { access, range, pinned, mode } => Failure::OutsidePin {
            access: access.into(),
            range: span(range),
            pinned: span(pinned),
            mode: mode.into(),
        },
        Error::WouldBlock { range } => Failure::WouldBlock { range: span(range) },
        Error::TimedOut { range, waited } => Failure::TimedOut { range: span(range), waited },
        Error::WouldDeadlock { range } => Failure::WouldDeadlock { range: span(range) },
        Error::DeviceFull { needed_bytes, budget_bytes, pinned_bytes } => {
            Failure::DeviceFull { needed_bytes, budget_bytes, pinned_bytes }
        }
        Error::Device(error) => Failure::Device(device_failure(error)),
        Error::File { what, range, errno } => {
            Failure::File { what: what.into(), range: span(range), errno }
        }
        Error::Os { what, errno } => Failure::Os { what, errno },
        Error::OutOfVmas { max_map_count } => Failure::OutOfVmas { max_map_count },
        Error::Unsupported(what) => Failure::Unsupported(what),
        Error::Unguarded { range, why } => Failure::Unguarded { range: span(range), why },
        Error::Limit { what, limit } => Failure::Limit { what, limit },
        Error::Forked => Failure::Forked,
        Error::KernelFailed(what) => Failure::KernelFailed(what),
        Error::Protocol(what) => Failure::Protocol(what),
        error @ Error::Disconnected { .. } => Failure::Protocol(error.to_string()),
    }
}

pub(crate) fn error(failure: Failure) -> Error {
    match failure {
        Failure::Version { daemon } => Error::Protocol(format!(
            "it has version {daemon} of the messages, this library {}",
            wire::VERSION
        )),
        Failure::Protocol(what) => Error::Protocol(what),
        Failure::Limit { what, limit } => Error::Limit { what, limit },
        Failure::InvalidArgument(text) => Error::InvalidArgument(text),
        Failure::NotRegularFile { name, what } => Error::NotRegularFile { name, what },
        Failure::PastEof { range, file_bytes } => {
            Error::PastEof { range: range.range(), file_bytes }
        }
        Failure::FileShrunk { range, file_bytes, lost_bytes } => {
            Error::FileShrunk { range: range.range(), file_bytes, lost_bytes }
        }
        Failure::ReadOnly(what) => Error::ReadOnly(what),
        Failure::OutsidePin { access, range, pinned, mode } => Error::OutsidePin {
            access: word(&access),
            range: range.range(),
            pinned: pinned.range(),
            mode: word(&mode),
        },
        Failure::WouldBlock { range } => Error::WouldBlock { range: range.range() },
        Failure::TimedOut { range, waited } => Error::TimedOut { range: range.range(), waited },
        Failure::WouldDeadlock { range } => Error::WouldDeadlock { range: range.range() },
        Failure::DeviceFull { needed_bytes, budget_bytes, pinned_bytes } => {
            Error::DeviceFull { needed_bytes, budget_bytes, pinned_bytes }
        }
        Failure::Device(failure) => Error::Device(device_error(failure)),
        Failure::File { what, range, errno } => {
            Error::File { what: word(&what), range: range.range(), errno }
        }
        Failure::Os { what, errno } => Error::Os { what, errno },
        Failure::OutOfVmas { max_map_count } => Error::OutOfVmas { max_map_count },
        Failure::Unsupported(what) => Error::Unsupported(what),
        Failure::Unguarded { range, why } => Error::Unguarded { range: range.range(), why },
        Failure::Forked => Error::Forked,
        Failure::KernelFailed(what) => Error::KernelFailed(what),
    }
}

fn device_failure(error: DeviceError) -> DeviceFailure {
    match error {
        DeviceError::Full { capacity_frames, frame_bytes } => {
            DeviceFailure::Full { capacity_frames, frame_bytes }
        }
        DeviceError::AllocFailed { frame_bytes } => DeviceFailure::AllocFailed { frame_bytes },
        DeviceError::CopyIn { len } => DeviceFailure::CopyIn { len },
        DeviceError::CopyOut { len } => DeviceFailure::CopyOut { len },
        DeviceError::Lost => DeviceFailure::Lost,
        DeviceError::NoAddressSpace { bytes } => DeviceFailure::NoAddressSpace { bytes },
        DeviceError::Invalid { what, frame } => {
            DeviceFailure::Invalid { what: what.into(), frame: frame.map(|f| f.0) }
        }
        DeviceError::KernelFailed { message } => DeviceFailure::KernelFailed { message },
        other => DeviceFailure::KernelFailed { message: other.to_string() },
    }
}

fn device_error(failure: DeviceFailure) -> DeviceError {
    match failure {
        DeviceFailure::Full { capacity_frames, frame_bytes } => {
            DeviceError::Full { capacity_frames, frame_bytes }
        }
        DeviceFailure::AllocFailed { frame_bytes } => DeviceError::AllocFailed { frame_bytes },
        DeviceFailure::CopyIn { len } => DeviceError::CopyIn { len },
        DeviceFailure::CopyOut { len } => DeviceError::CopyOut { len },
        DeviceFailure::Lost => DeviceError::Lost,
        DeviceFailure::NoAddressSpace { bytes } => DeviceError::NoAddressSpace { bytes },
        DeviceFailure::Invalid { frame, .. } => {
            DeviceError::Invalid { what: "as the daemon's log says", frame: frame.map(FrameId) }
        }
        DeviceFailure::KernelFailed { message } => DeviceError::KernelFailed { message },
    }
}

/// A text of a client's that goes to people: without what would steer a terminal, and not endless.
pub(crate) fn for_people(text: &str) -> Cow<'_, str> {
    const CHARS_MAX: usize = 200;
    let plain = |c: char| !c.is_control();
    if text.chars().all(plain) && text.chars().count() <= CHARS_MAX {
        return Cow::Borrowed(text);
    }
    let kept = text.chars().take(CHARS_MAX).map(|c| if plain(c) { c } else { '\u{fffd}' });
    Cow::Owned(kept.collect())
}
