//! Any message there is. Lists are short: the longest ones have tests of their own.

use std::ops::RangeInclusive;
use std::time::Duration;

use pageferry_wire::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..300_u64, Just(u64::MAX)]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z ]{0,20}", "\\PC{0,20}"]
}

fn list<S: Strategy>(of: S) -> impl Strategy<Value = Vec<S::Value>> {
    vec(of, 0..8)
}

pub fn span() -> impl Strategy<Value = Span> {
    (number(), number()).prop_map(|(a, b)| Span::new(a.min(b)..a.max(b)).expect("ordered"))
}

fn file() -> impl Strategy<Value = FileId> {
    number().prop_map(FileId)
}

fn map() -> impl Strategy<Value = MapId> {
    number().prop_map(MapId)
}

fn pin() -> impl Strategy<Value = PinId> {
    number().prop_map(PinId)
}

fn duration() -> impl Strategy<Value = Duration> {
    (number(), 0..1_000_000_000_u32).prop_map(|(s, n)| Duration::new(s, n))
}

fn owner() -> impl Strategy<Value = Option<u32>> {
    option::of(any::<u32>())
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Read), Just(Mode::Write), Just(Mode::Overwrite)]
}

fn wait() -> impl Strategy<Value = Wait> {
    prop_oneof![Just(Wait::Block), duration().prop_map(Wait::Timeout), Just(Wait::Try)]
}

fn release() -> impl Strategy<Value = Release> {
    let after = prop_oneof![Just(After::WriteBack), Just(After::KeepAway)];
    (pin(), after).prop_map(|(pin, after)| Release { pin, after })
}

fn stores() -> impl Strategy<Value = Stores> {
    (file(), 0..=STORE_RUNS_MAX, number()).prop_map(|(file, runs, bytes)| Stores {
        file,
        runs,
        bytes,
    })
}

pub fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (number(), vec(any::<u8>(), 0..100))
            .prop_map(|(offset, bytes)| Change::Write { offset, bytes }),
        (number(), number()).prop_map(|(offset, bytes)| Change::WriteMemory { offset, bytes }),
        number().prop_map(Change::SetLen),
        span().prop_map(Change::PunchHole),
        (span(), any::<bool>()).prop_map(|(span, keep_size)| Change::ZeroRange { span, keep_size }),
        (span(), any::<bool>()).prop_map(|(span, keep_size)| Change::Allocate { span, keep_size }),
        span().prop_map(Change::CollapseRange),
        span().prop_map(Change::InsertRange),
    ]
}

/// Requests that name a file.
fn of_file() -> impl Strategy<Value = Request> {
    let known: RangeInclusive<usize> = 1..=FOLIOS_MAX;
    prop_oneof![
        file().prop_map(|file| Request::Close { file }),
        file().prop_map(|file| Request::Len { file }),
        (file(), vec(span(), 1..8), mode(), wait(), owner()).prop_map(
            |(file, ranges, mode, wait, owner)| Request::Pin { file, ranges, mode, wait, owner }
        ),
        (pin(), number(), vec(number(), known))
            .prop_map(|(pin, first_folio, known)| Request::Frames { pin, first_folio, known }),
        (file(), number(), 0..=DATA_BYTES_MAX as u32, owner())
            .prop_map(|(file, offset, bytes, owner)| Request::Read { file, offset, bytes, owner }),
        (file(), change(), owner()).prop_map(|(file, change, owner)| Request::Change {
            file,
            change,
            owner
        }),
        (file(), span(), owner()).prop_map(|(file, span, owner)| Request::Flush {
            file,
            span,
            owner
        }),
        (file(), span(), any::<bool>(), owner()).prop_map(|(file, span, data_only, owner)| {
            Request::Sync { file, span, data_only, owner }
        }),
        (file(), span()).prop_map(|(file, span)| Request::Prefetch { file, span }),
        (file(), span()).prop_map(|(file, span)| Request::Evict { file, span }),
        file().prop_map(|file| Request::Coherence { file }),
        (file(), span()).prop_map(|(file, span)| Request::Placement { file, span }),
        file().prop_map(|file| Request::Drop { file }),
        file().prop_map(|file| Request::Description { file }),
        Just(Request::Callbacks),
        (map(), file(), span(), any::<bool>())
            .prop_map(|(map, file, span, writable)| Request::MapIn { map, file, span, writable }),
        map().prop_map(|map| Request::MapOut { map }),
        (map(), number(), owner(), any::<bool>())
            .prop_map(|(map, at, owner, expel)| Request::Touch { map, at, owner, expel }),
    ]
}

fn of_session() -> impl Strategy<Value = Request> {
    prop_oneof![
        any::<u32>().prop_map(|version| Request::Hello { version }),
        (text(), any::<bool>()).prop_map(|(name, writable)| Request::Open { name, writable }),
        (pin(), owner()).prop_map(|(pin, owner)| Request::SetOwner { pin, owner }),
        (pin(), number(), vec(any::<u8>(), 0..40))
            .prop_map(|(pin, offset, bytes)| Request::Store { pin, offset, bytes }),
        (list(release()), option::of(stores()))
            .prop_map(|(pins, stores)| Request::Release { pins, stores }),
        (pin(), number()).prop_map(|(pin, at)| Request::Fault { pin, at }),
        owner().prop_map(|owner| Request::FlushAll { owner }),
        Just(Request::Stats),
        Just(Request::Usage),
        number().prop_map(|after| Request::Sessions { after }),
    ]
}

pub fn call() -> impl Strategy<Value = Call> {
    (any::<u32>(), prop_oneof![of_file(), of_session()])
        .prop_map(|(id, request)| Call { id, request })
}

pub fn device_failure() -> impl Strategy<Value = DeviceFailure> {
    prop_oneof![
        (number(), number()).prop_map(|(capacity_frames, frame_bytes)| DeviceFailure::Full {
            capacity_frames,
            frame_bytes
        }),
        number().prop_map(|frame_bytes| DeviceFailure::AllocFailed { frame_bytes }),
        number().prop_map(|len| DeviceFailure::CopyIn { len }),
        number().prop_map(|len| DeviceFailure::CopyOut { len }),
        Just(DeviceFailure::Lost),
        number().prop_map(|bytes| DeviceFailure::NoAddressSpace { bytes }),
        (text(), option::of(any::<u32>()))
            .prop_map(|(what, frame)| DeviceFailure::Invalid { what, frame }),
        text().prop_map(|message| DeviceFailure::KernelFailed { message }),
    ]
}

fn failure_of_range() -> impl Strategy<Value = Failure> {
    prop_oneof![
        (span(), number()).prop_map(|(range, file_bytes)| Failure::PastEof { range, file_bytes }),
        (span(), number(), number()).prop_map(|(range, file_bytes, lost_bytes)| {
            Failure::FileShrunk { range, file_bytes, lost_bytes }
        }),
        (text(), span(), span(), text()).prop_map(|(access, range, pinned, mode)| {
            Failure::OutsidePin { access, range, pinned, mode }
        }),
        span().prop_map(|range| Failure::WouldBlock { range }),
        (span(), duration()).prop_map(|(range, waited)| Failure::TimedOut { range, waited }),
        span().prop_map(|range| Failure::WouldDeadlock { range }),
        (text(), span(), any::<i32>()).prop_map(|(what, range, errno)| Failure::File {
            what,
            range,
            errno
        }),
        (span(), text()).prop_map(|(range, why)| Failure::Unguarded { range, why }),
    ]
}

pub fn failure() -> impl Strategy<Value = Failure> {
    let other = prop_oneof![
        any::<u32>().prop_map(|daemon| Failure::Version { daemon }),
        text().prop_map(Failure::Protocol),
        (text(), number()).prop_map(|(what, limit)| Failure::Limit { what, limit }),
        text().prop_map(Failure::InvalidArgument),
        (text(), text()).prop_map(|(name, what)| Failure::NotRegularFile { name, what }),
        text().prop_map(Failure::ReadOnly),
        (number(), number(), number()).prop_map(|(needed_bytes, budget_bytes, pinned_bytes)| {
            Failure::DeviceFull { needed_bytes, budget_bytes, pinned_bytes }
        }),
        device_failure().prop_map(Failure::Device),
        (text(), any::<i32>()).prop_map(|(what, errno)| Failure::Os { what, errno }),
        number().prop_map(|max_map_count| Failure::OutOfVmas { max_map_count }),
        text().prop_map(Failure::Unsupported),
        Just(Failure::Forked),
        text().prop_map(Failure::KernelFailed),
    ];
    prop_oneof![failure_of_range(), other]
}

fn welcome() -> impl Strategy<Value = Reply> {
    let device = (text(), number(), number(), number(), any::<bool>()).prop_map(
        |(name, frame_bytes, capacity_frames, region_bytes, dirty_bits)| Device {
            name,
            frame_bytes,
            capacity_frames,
            region_bytes,
            dirty_bits,
        },
    );
    let limits = (number(), number(), number(), number()).prop_map(
        |(files, pins, pinned_bytes, requests)| Limits { files, pins, pinned_bytes, requests },
    );
    (any::<u32>(), number(), device, number(), limits).prop_map(
        |(version, session, device, memory_bytes, limits)| Reply::Welcome {
            version,
            session,
            device,
            memory_bytes,
            limits,
        },
    )
}

fn session() -> impl Strategy<Value = SessionUse> {
    let who = (number(), any::<u32>(), any::<u32>(), text());
    (who, number(), number(), number(), number()).prop_map(
        |((session, pid, uid, program), files, pins, pinned_bytes, requests)| SessionUse {
            session,
            pid,
            uid,
            program,
            files,
            pins,
            pinned_bytes,
            requests,
        },
    )
}

fn run() -> impl Strategy<Value = Run> {
    let state = prop_oneof![Just(PageState::Home), Just(PageState::Copy), Just(PageState::Away)];
    (span(), state, any::<bool>()).prop_map(|(span, state, pinned)| Run { span, state, pinned })
}

fn counter() -> impl Strategy<Value = Counter> {
    (text(), text(), text(), number()).prop_map(|(name, unit, help, value)| Counter {
        name,
        unit,
        help,
        value,
    })
}

fn outcome() -> impl Strategy<Value = Result<Released, Failure>> {
    let released = (number(), option::of(text()))
        .prop_map(|(written_bytes, refused)| Released { written_bytes, refused });
    prop_oneof![released.prop_map(Ok), failure().prop_map(Err)]
}

pub fn reply() -> impl Strategy<Value = Reply> {
    let coherence = prop_oneof![
        Just(Coherence::Fixed),
        Just(Coherence::Proven),
        Just(Coherence::Stamps),
        text().prop_map(Coherence::Unproven),
    ];
    prop_oneof![
        Just(Reply::Done),
        welcome(),
        file().prop_map(|file| Reply::Opened { file }),
        (list(pin()), number()).prop_map(|(pins, layout)| Reply::Pinned { pins, layout }),
        list(outcome()).prop_map(|pins| Reply::Released { pins }),
        (number(), list(number())).prop_map(|(layout, serials)| Reply::Frames { layout, serials }),
        vec(any::<u8>(), 0..100).prop_map(Reply::Data),
        number().prop_map(Reply::Bytes),
        coherence.prop_map(Reply::Coherence),
        list(run()).prop_map(Reply::Placement),
        list(counter()).prop_map(Reply::Stats),
        (number(), number(), number()).prop_map(|(used_bytes, memory_bytes, sessions)| {
            Reply::Usage { used_bytes, memory_bytes, sessions }
        }),
        (list(session()), any::<bool>())
            .prop_map(|(sessions, more)| Reply::Sessions { sessions, more }),
    ]
}

pub fn answer() -> impl Strategy<Value = Return> {
    let result = prop_oneof![3 => reply().prop_map(Ok), 2 => failure().prop_map(Err)];
    (any::<u32>(), result).prop_map(|(id, result)| Return { id, result })
}
