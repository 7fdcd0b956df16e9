//! What a message may hold, and what no message may.

use pageferry_wire::*;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::check;
use crate::strategies::span;

/// The largest there is: numbers take as many bytes as they can.
fn far() -> Span {
    Span::new(u64::MAX..u64::MAX).expect("empty")
}

fn call(request: Request) -> Call {
    Call { id: u32::MAX, request }
}

fn answer(reply: Reply) -> Return {
    Return { id: u32::MAX, result: Ok(reply) }
}

/// Requests with one more or fewer than the maximum of each list.
fn requests(more: usize) -> Vec<(&'static str, Request)> {
    let file = FileId(u64::MAX);
    let release = Release { pin: PinId(u64::MAX), after: After::KeepAway };
    let stores = Stores { file, runs: STORE_RUNS_MAX + more as u64, bytes: u64::MAX };
    let write = Change::Write { offset: u64::MAX, bytes: vec![255; DATA_BYTES_MAX + more] };
    let owner = Some(u32::MAX);
    vec![
        ("name", Request::Open { name: "n".repeat(NAME_BYTES_MAX + more), writable: true }),
        (
            "ranges",
            Request::Pin {
                file,
                ranges: vec![far(); RANGES_MAX + more],
                mode: Mode::Overwrite,
                wait: Wait::Timeout(std::time::Duration::MAX),
                owner,
            },
        ),
        (
            "folios",
            Request::Frames {
                pin: PinId(u64::MAX),
                first_folio: u64::MAX,
                known: vec![u64::MAX; FOLIOS_MAX + more],
            },
        ),
        ("releases", Request::Release { pins: vec![release; RELEASES_MAX + more], stores: None }),
        ("runs", Request::Release { pins: vec![release; RELEASES_MAX], stores: Some(stores) }),
        (
            "read",
            Request::Read { file, offset: u64::MAX, bytes: (DATA_BYTES_MAX + more) as u32, owner },
        ),
        ("write", Request::Change { file, change: write, owner }),
    ]
}

fn replies(more: usize) -> Vec<(&'static str, Reply)> {
    let run = Run { span: far(), state: PageState::Away, pinned: true };
    let text = || "name_of_a_counter".to_string();
    let counter = Counter { name: text(), unit: text(), help: text(), value: u64::MAX };
    let session = SessionUse {
        session: u64::MAX,
        pid: u32::MAX,
        uid: u32::MAX,
        program: text(),
        files: u64::MAX,
        pins: u64::MAX,
        pinned_bytes: u64::MAX,
        requests: u64::MAX,
    };
    let released = Ok(Released { written_bytes: u64::MAX, refused: None });
    let pins = vec![PinId(u64::MAX); RANGES_MAX + more];
    let serials = vec![u64::MAX; FOLIOS_MAX + more];
    let sessions = vec![session; SESSIONS_MAX + more];
    vec![
        ("pins", Reply::Pinned { pins, layout: u64::MAX }),
        ("released", Reply::Released { pins: vec![released; RELEASES_MAX + more] }),
        ("serials", Reply::Frames { layout: u64::MAX, serials }),
        ("data", Reply::Data(vec![255; DATA_BYTES_MAX + more])),
        ("placement", Reply::Placement(vec![run; PLACEMENT_RUNS_MAX + more])),
        ("counters", Reply::Stats(vec![counter; COUNTERS_MAX + more])),
        ("sessions", Reply::Sessions { sessions, more: true }),
    ]
}

#[test]
fn the_largest_of_each_fits() {
    for (what, request) in requests(0) {
        let call = call(request);
        let packet = encode_call(&call).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(decode_call(&packet), Ok(call), "{what}");
    }
    for (what, reply) in replies(0) {
        let answer = answer(reply);
        let packet = encode_return(&answer).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(decode_return(&packet), Ok(answer), "{what}");
    }
}

/// One more is refused by both sides, for the same reason.
#[test]
fn one_more_of_each_is_refused() {
    for (what, request) in requests(1) {
        let call = call(request);
        let packet = postcard::to_allocvec(&call).expect("encodes");
        let refusal = encode_call(&call).expect_err(what);
        assert!(refusal.count == refusal.max + 1, "{what}: {refusal}");
        assert_eq!(decode_call(&packet), Err(Malformed::TooLarge(refusal)), "{what}");
    }
    for (what, reply) in replies(1) {
        let answer = answer(reply);
        let packet = postcard::to_allocvec(&answer).expect("encodes");
        let refusal = encode_return(&answer).expect_err(what);
        assert!(refusal.count == refusal.max + 1, "{what}: {refusal}");
        assert_eq!(decode_return(&packet), Err(Malformed::TooLarge(refusal)), "{what}");
    }
}

#[test]
fn a_request_for_nothing_is_refused() {
    let (mode, wait, owner, file) = (Mode::Read, Wait::Try, None, FileId(0));
    let pin = call(Request::Pin { file, ranges: Vec::new(), mode, wait, owner });
    let frames = call(Request::Frames { pin: PinId(0), first_folio: 0, known: Vec::new() });
    for (call, what) in [(pin, "ranges"), (frames, "folios")] {
        let packet = encode_call(&call).expect("fits");
        assert_eq!(decode_call(&packet), Err(Malformed::Missing(what)));
    }
}

#[test]
fn a_packet_has_no_more_bytes_than_it_may() {
    let refused = |bytes| decode_call(&vec![0; bytes]).expect_err("no message");
    let (count, max) = (MESSAGE_BYTES_MAX as u64 + 1, MESSAGE_BYTES_MAX as u64);
    let too_large = TooLarge { what: "bytes of a packet", count, max };
    assert_eq!(refused(MESSAGE_BYTES_MAX + 1), Malformed::TooLarge(too_large));
    // A greeting of version 0, and zeros.
    assert_eq!(refused(MESSAGE_BYTES_MAX), Malformed::Trailing { bytes: MESSAGE_BYTES_MAX - 3 });
}

/// An answer always arrives, however long its texts: each keeps its beginning.
#[test]
fn texts_that_do_not_fit_are_cut() {
    let why = "ä".repeat(1000);
    let failure = Failure::File { what: why.clone(), range: far(), errno: i32::MIN };
    let refused = Ok(Released { written_bytes: u64::MAX, refused: Some(why.clone()) });
    let mut pins = vec![refused; RELEASES_MAX];
    pins[0] = Err(failure);
    let packet = encode_return(&answer(Reply::Released { pins })).expect("fits");
    let Ok(Reply::Released { pins }) = decode_return(&packet).expect("message").result else {
        panic!("another answer")
    };
    assert_eq!(pins.len(), RELEASES_MAX);
    let Err(Failure::File { what, range, errno }) = &pins[0] else { panic!("another outcome") };
    assert!(why.starts_with(what) && !what.is_empty(), "{what}");
    assert_eq!((*range, *errno), (far(), i32::MIN));
    // The largest without texts fit as well.
    let (access, mode) = (why.clone(), why);
    let outside = Failure::OutsidePin { access, range: far(), pinned: far(), mode };
    let pins = vec![Err(outside); RELEASES_MAX];
    assert!(encode_return(&answer(Reply::Released { pins })).is_ok());
    // What fits is not touched.
    let long = Return { id: 1, result: Err(Failure::Protocol("x".repeat(60_000))) };
    assert_eq!(decode_return(&encode_return(&long).expect("fits")), Ok(long));
}

fn spans(runs: &[(u64, u64)]) -> Vec<Span> {
    runs.iter().map(|&(start, end)| Span::new(start..end).expect("ordered")).collect()
}

#[test]
fn runs_of_stores_are_checked() {
    let good = spans(&[(0, 4096), (4096, 5000), (8192, 16384), (1 << 62, i64::MAX as u64)]);
    let records = encode_runs(&good).expect("good");
    assert_eq!(records.len() as u64, Stores { file: FileId(0), runs: 4, bytes: 0 }.record_bytes());
    assert_eq!(records[16..32], [&4096_u64.to_le_bytes()[..], &904_u64.to_le_bytes()].concat());
    assert_eq!(parse_runs(&records), Ok(good));
    assert_eq!(parse_runs(&[]), Ok(Vec::new()));
    assert_eq!(parse_runs(&records[..40]), Err(BadRuns::Partial { bytes: 40 }));
    let bad = [
        (spans(&[(4096, 4096)]), BadRuns::Empty { run: 0 }),
        (spans(&[(8192, 8193), (4096, 4097)]), BadRuns::Disorder { run: 1 }),
        (spans(&[(0, 4097), (4096, 4098)]), BadRuns::Disorder { run: 1 }),
        (spans(&[(0, 1), (4096, 1 << 63)]), BadRuns::Overflow { run: 1 }),
    ];
    for (runs, refusal) in bad {
        assert_eq!(encode_runs(&runs), Err(refusal));
        let record = |run: &Span| [run.start().to_le_bytes(), run.len().to_le_bytes()].concat();
        let records: Vec<u8> = runs.iter().flat_map(record).collect();
        assert_eq!(parse_runs(&records), Err(refusal));
    }
    let wrapping = [4096_u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat();
    assert_eq!(parse_runs(&wrapping), Err(BadRuns::Overflow { run: 0 }));
    let many = vec![0; (STORE_RUNS_MAX as usize + 1) * 16];
    assert_eq!(parse_runs(&many), Err(BadRuns::TooMany));
}

/// What is taken keeps the rules.
#[test]
fn any_records_are_runs_or_none() {
    let page = prop_oneof![0..40_u64, any::<u64>()].prop_map(|page| page << 12);
    let bytes = prop_oneof![1..9000_u64, any::<u64>()];
    check(vec((page, bytes), 0..6), |mut pairs| {
        pairs.sort_unstable();
        let records: Vec<u8> = pairs
            .iter()
            .flat_map(|(start, bytes)| [start.to_le_bytes(), bytes.to_le_bytes()].concat())
            .collect();
        if let Ok(runs) = parse_runs(&records) {
            prop_assert_eq!(runs.len(), pairs.len());
            prop_assert!(runs.windows(2).all(|two| two[0].end() <= two[1].start()));
            prop_assert!(runs.iter().all(|run| run.start() % 4096 == 0 && !run.is_empty()));
            prop_assert_eq!(encode_runs(&runs), Ok(records));
        }
        Ok(())
    });
    check(vec(span(), 0..5), |spans| {
        if let Ok(records) = encode_runs(&spans) {
            prop_assert_eq!(parse_runs(&records), Ok(spans));
        }
        Ok(())
    });
}
