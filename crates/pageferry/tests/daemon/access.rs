//! What a client may do with a file is what its descriptor may.

use std::os::fd::AsFd;

use crate::common::*;
use crate::raw::*;
use pageferry_wire::*;

#[track_caller]
fn is_read_only<T: std::fmt::Debug>(result: Result<T, Failure>) {
    assert!(matches!(&result, Err(Failure::ReadOnly(_))), "{result:?}");
}

#[test]
fn a_descriptor_for_reading_changes_nothing() {
    alone(60, || {
        let d = daemon(8);
        let path = d.file("a");
        // Another has the same file for writing: the cache's own description can write.
        let mut writer = d.client();
        let written = writer.open(&path, true);
        let pin = writer.pin(written, FRAME..2 * FRAME, Mode::Write).unwrap();
        let mut raw = d.client();
        let file = raw.open(&path, false);
        for mode in [Mode::Write, Mode::Overwrite] {
            is_read_only(raw.pin(file, 0..4096, mode));
        }
        let whole = span(0..4096);
        for change in [
            Change::Write { offset: 0, bytes: vec![0xEE; 10] },
            Change::SetLen(0),
            Change::SetLen(1 << 30),
            Change::PunchHole(whole),
            Change::ZeroRange { span: whole, keep_size: true },
            Change::Allocate { span: span(0..1 << 20), keep_size: false },
            Change::CollapseRange(whole),
            Change::InsertRange(whole),
        ] {
            is_read_only(raw.ask(Request::Change { file, change, owner: None }));
        }
        let reading = raw.pin(file, 0..4096, Mode::Read).unwrap();
        let (stores, memory) = stored(file, &[0..4096], 0xEE);
        is_protocol(raw.release_stored(reading, stores, memory.as_fd()));
        writer.release(pin).unwrap();
        same(&std::fs::read(&path).unwrap(), &pattern(FILE), "the file");
        drop((raw, writer, memory));
        d.ends_clean();
    });
}

/// The same file opened twice by one session keeps two rights apart.
#[test]
fn rights_belong_to_an_opening_not_to_a_session() {
    alone(60, || {
        let d = daemon(8);
        let path = d.file("a");
        let mut raw = d.client();
        let (reads, writes) = (raw.open(&path, false), raw.open(&path, true));
        is_read_only(raw.pin(reads, 0..4096, Mode::Write));
        let pin = raw.pin(writes, 0..4096, Mode::Write).unwrap();
        // Stores told of the opening that cannot write.
        let (stores, memory) = stored(reads, &[0..4096], 0xEE);
        is_protocol(raw.release_stored(pin, stores, memory.as_fd()));
        same(&std::fs::read(&path).unwrap(), &pattern(FILE), "the file");
        drop((raw, memory));
        d.ends_clean();
    });
}
