//! Messages that break the rules.

use std::os::fd::{AsFd, AsRawFd};

use crate::common::*;
use crate::raw::*;
use pageferry_wire::*;

/// Sends bytes on a session that was greeted or not; it must end, or answer, and nobody else be hurt.
fn throw(d: &Daemon, greeted: bool, packet: &[u8]) {
    let mut raw = Raw::connect(&d.socket);
    if greeted {
        raw.hello();
    }
    raw.socket.send(packet, &[]).unwrap();
    raw.hangs_up();
}

#[test]
fn what_is_no_message_ends_its_session_and_no_other() {
    alone(120, || {
        let d = daemon(4);
        let mut bystander = d.client();
        let path = d.file("a");
        let file = bystander.open(&path, false);
        let pin = bystander.pin(file, 0..FRAME, Mode::Read).unwrap();
        for greeted in [false, true] {
            throw(&d, greeted, &[0xFF; 1]);
            throw(&d, greeted, &[0xFF; 4096]);
            throw(&d, greeted, &[0; 4096]);
            throw(&d, greeted, &vec![0x80; MESSAGE_BYTES_MAX]);
            throw(&d, greeted, &vec![0; MESSAGE_BYTES_MAX + 1]);
            throw(&d, greeted, &vec![1; 150_000]);
        }
        let mut dice = Dice(0x5eed_0001);
        for _ in 0..200 {
            let len = 1 + dice.roll(300) as usize;
            let mut packet: Vec<u8> = (0..len).map(|_| dice.roll(256) as u8).collect();
            // No valid one by chance: nothing ends with a number that goes on.
            packet.push(0x80);
            throw(&d, dice.roll(2) == 1, &packet);
        }
        assert_eq!(bystander.frames(pin, 0, 1).unwrap().1.len(), 1);
        drop(bystander);
        d.ends_clean();
    });
}

/// An empty packet arrives as the end of the connection does.
#[test]
fn an_empty_packet_is_the_end() {
    alone(60, || {
        let d = daemon(4);
        let raw = d.client();
        // SAFETY: no bytes are read.
        let sent = unsafe { libc::send(raw.socket.as_fd().as_raw_fd(), std::ptr::null(), 0, 0) };
        assert_eq!(sent, 0);
        assert!(raw.next().is_none());
        drop(raw);
        d.ends_clean();
    });
}

#[test]
fn a_session_begins_with_one_hello_of_the_right_version() {
    alone(60, || {
        let d = daemon(4);
        let file = std::fs::File::open(d.file("a")).unwrap();
        let early: [(Request, bool); 4] = [
            (Request::Stats, false),
            (Request::Sessions { after: 0 }, false),
            (Request::Open { name: "a".into(), writable: false }, true),
            (
                Request::Pin {
                    file: FileId(1),
                    ranges: vec![span(0..1)],
                    mode: Mode::Read,
                    wait: Wait::Try,
                    owner: None,
                },
                false,
            ),
        ];
        for (request, with_file) in early {
            let mut raw = Raw::connect(&d.socket);
            let fds = if with_file { vec![file.as_fd()] } else { vec![] };
            is_protocol(raw.call(request, &fds));
            raw.hangs_up();
        }
        let mut twice = d.client();
        is_protocol(twice.ask(Request::Hello { version: VERSION }));
        twice.hangs_up();
        for version in [0, VERSION + 1, u32::MAX] {
            let mut raw = Raw::connect(&d.socket);
            let refused = raw.ask(Request::Hello { version });
            assert_eq!(refused, Err(Failure::Version { daemon: VERSION }));
            // Nothing but another try is heard from it.
            is_protocol(raw.ask(Request::Stats));
            raw.hangs_up();
        }
        drop((twice, file));
        d.ends_clean();
    });
}

/// Valid messages, each with some bits turned over: all are answered, or end their session.
#[test]
fn mutated_messages_hurt_nobody() {
    alone(300, || {
        let d = daemon(4);
        let path = d.file("a");
        let seed = 0x5eed_0002;
        println!("seed {seed:#x}");
        let mut dice = Dice(seed);
        let (file, pin) = (FileId(1), PinId(2));
        let templates = |n: u64| match n {
            0 => Request::Close { file },
            1 => Request::Pin {
                file,
                ranges: vec![span(0..4096), span(8192..FRAME)],
                mode: Mode::Read,
                wait: Wait::Try,
                owner: Some(7),
            },
            2 => Request::SetOwner { pin, owner: Some(1) },
            3 => Request::Release {
                pins: vec![Release { pin, after: After::KeepAway }],
                stores: None,
            },
            4 => Request::Frames { pin, first_folio: 0, known: vec![0; 3] },
            5 => Request::Fault { pin, at: 17 },
            6 => Request::Read { file, offset: 0, bytes: 4096, owner: None },
            7 => Request::Flush { file, span: span(0..FRAME), owner: None },
            8 => Request::Evict { file, span: span(0..FRAME) },
            9 => Request::Prefetch { file, span: span(0..FRAME) },
            10 => Request::Placement { file, span: span(0..FRAME) },
            11 => Request::Sessions { after: 0 },
            _ => Request::Drop { file },
        };
        for round in 0..300 {
            let mut raw = d.client();
            let opened = raw.open(&path, false);
            assert_eq!(opened, file);
            assert_eq!(raw.pin(file, 0..FRAME, Mode::Read).unwrap(), pin);
            let request = templates(round % 13);
            let mut packet = encode_call(&Call { id: 99, request }).unwrap();
            for _ in 0..=dice.roll(3) {
                let at = dice.roll(packet.len() as u64) as usize;
                packet[at] ^= 1 << dice.roll(8);
            }
            match dice.roll(8) {
                0 => packet.truncate(1 + dice.roll(packet.len() as u64) as usize),
                1 => packet.push(dice.roll(256) as u8),
                _ => {}
            }
            raw.socket.send(&packet, &[]).unwrap();
            // A valid one behind it, so that there is something to wait for.
            raw.send(Request::Usage, &[]);
            let _ = raw.next();
        }
        same(&std::fs::read(&path).unwrap(), &pattern(FILE), "the file, which nobody could write");
        d.ends_clean();
    });
}

#[test]
fn a_session_knows_only_its_own_numbers() {
    alone(60, || {
        let d = daemon(8);
        let path = d.file("a");
        let mut owner = d.client();
        let file = owner.open(&path, true);
        let pin = owner.pin(file, 0..FRAME, Mode::Write).unwrap();
        let mut thief = d.client();
        for file in [file, FileId(0), FileId(pin.0), FileId(u64::MAX)] {
            is_protocol(thief.ask(Request::Len { file }));
            is_protocol(thief.pin(file, 0..1, Mode::Read));
            is_protocol(thief.read(file, 0, 1));
            is_protocol(thief.ask(Request::Change {
                file,
                change: Change::SetLen(0),
                owner: None,
            }));
            is_protocol(thief.ask(Request::Close { file }));
            is_protocol(thief.ask(Request::Drop { file }));
            is_protocol(thief.ask(Request::Evict { file, span: span(0..FRAME) }));
            is_protocol(thief.ask(Request::Placement { file, span: span(0..FRAME) }));
            is_protocol(thief.ask(Request::Coherence { file }));
            is_protocol(thief.ask(Request::Sync {
                file,
                span: span(0..1),
                data_only: true,
                owner: None,
            }));
        }
        for pin in [pin, PinId(0), PinId(file.0), PinId(u64::MAX)] {
            is_protocol(thief.frames(pin, 0, 1));
            is_protocol(thief.release(pin));
            is_protocol(thief.ask(Request::Fault { pin, at: 0 }));
            is_protocol(thief.ask(Request::SetOwner { pin, owner: None }));
        }
        let (stores, memory) = stored(file, &[0..4096], 0xEE);
        is_protocol(thief.release_stored(pin, stores, memory.as_fd()));
        // The owner's are what they were; and a file's number is no pin's.
        is_protocol(owner.frames(PinId(file.0), 0, 1));
        assert_eq!(owner.frames(pin, 0, 1).unwrap().1.len(), 1);
        owner.release(pin).unwrap();
        is_protocol(owner.release(pin));
        is_protocol(owner.frames(pin, 0, 1));
        same(&std::fs::read(&path).unwrap(), &pattern(FILE), "the file");
        drop((owner, thief, memory));
        d.ends_clean();
    });
}
