//! A client that dies at every step of the protocol, before it has sent a message and after.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use crate::children::{play, say};
use crate::common::*;
use crate::raw::*;
use pageferry_wire::*;

/// What the script stores, in one release: two runs in different frames.
const RUNS: [std::ops::Range<u64>; 2] = [4096..8192, FRAME + 100..FRAME + 300];
const STORED: u8 = 0xC7;
/// What it writes afterwards.
const CHANGED: (u64, u8) = (3 * FRAME, 0x5A);

/// A client that dies at one of its steps.
struct Mortal {
    raw: Raw,
    step: usize,
    dies_at: usize,
    before: bool,
}

impl Mortal {
    fn call(&mut self, request: Request, fds: &[std::os::fd::BorrowedFd<'_>]) -> Reply {
        self.step += 1;
        let now = self.step == self.dies_at;
        if now && self.before {
            die();
        }
        let id = self.raw.send(request, fds);
        if now {
            die();
        }
        let (answer, _memories) = self.raw.next().expect("an answer");
        assert_eq!(answer.id, id);
        answer.result.expect("a reply")
    }

    fn pin(&mut self, file: FileId, mode: Mode) -> PinId {
        let ranges = vec![span(0..2 * FRAME)];
        let wait = Wait::Block;
        match self.call(Request::Pin { file, ranges, mode, wait, owner: Some(1) }, &[]) {
            Reply::Pinned { pins, .. } => pins[0],
            other => panic!("{other:?}"),
        }
    }
}

fn die() -> ! {
    // SAFETY: a signal to ourselves.
    unsafe { libc::kill(std::process::id() as i32, libc::SIGKILL) };
    unreachable!("killed")
}

/// The script. Says how many steps it has if it gets to its end.
pub fn client(socket: &str, path: &str, dies_at: usize, before: bool) {
    let raw = Raw::connect(Path::new(socket));
    let mut mortal = Mortal { raw, step: 0, dies_at, before };
    mortal.call(Request::Hello { version: VERSION }, &[]);
    let io = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let open = Request::Open { name: "a".into(), writable: true };
    let Reply::Opened { file } = mortal.call(open, &[io.as_fd()]) else { panic!("not opened") };
    drop(io);
    let release = |pin| vec![Release { pin, after: After::WriteBack }];
    let pin = mortal.pin(file, Mode::Read);
    mortal.call(Request::Frames { pin, first_folio: 0, known: vec![0; 2] }, &[]);
    mortal.call(Request::Fault { pin, at: 5 }, &[]);
    mortal.call(Request::Release { pins: release(pin), stores: None }, &[]);
    let pin = mortal.pin(file, Mode::Write);
    mortal.call(Request::Frames { pin, first_folio: 0, known: vec![0; 2] }, &[]);
    let (stores, memory) = stored(file, &RUNS, STORED);
    let request = Request::Release { pins: release(pin), stores: Some(stores) };
    mortal.call(request, &[memory.as_fd()]);
    let (offset, byte) = CHANGED;
    let change = Change::Write { offset, bytes: vec![byte; 100] };
    mortal.call(Request::Change { file, change, owner: Some(1) }, &[]);
    mortal.call(Request::Flush { file, span: span(0..FILE), owner: None }, &[]);
    mortal.call(Request::Close { file }, &[]);
    say(&format!("{} steps", mortal.step));
}

/// The file as it is after so much of the script.
fn after(released: bool, changed: bool) -> Vec<u8> {
    let mut bytes = pattern(FILE);
    if released {
        RUNS.iter().for_each(|run| bytes[run.start as usize..run.end as usize].fill(STORED));
    }
    if changed {
        bytes[CHANGED.0 as usize..][..100].fill(CHANGED.1);
    }
    bytes
}

#[test]
fn a_client_may_die_at_every_step() {
    alone(300, || {
        let d = daemon(16);
        let path = d.file("a");
        let (socket, name) = (d.socket.to_str().unwrap(), path.to_str().unwrap());
        let mut whole = play("steps", &[socket, name, "0", "before"], |_| {});
        let said = whole.says().unwrap();
        assert!(whole.ends().success());
        let steps: usize = said.strip_suffix(" steps").unwrap().parse().unwrap();
        assert_eq!(steps, 12);
        drop(whole);
        same(&std::fs::read(&path).unwrap(), &after(true, true), "after the whole script");
        for step in 1..=steps {
            for when in ["before", "after"] {
                std::fs::write(&path, pattern(FILE)).unwrap();
                let mut dead = play("steps", &[socket, name, &step.to_string(), when], |_| {});
                assert_eq!(dead.says(), None);
                assert_eq!(dead.ends().signal(), Some(libc::SIGKILL));
                d.deserted();
                let found = std::fs::read(&path).unwrap();
                // The ninth step releases, the tenth changes; what was sent is heard, or not.
                let sent = step - usize::from(when == "before");
                let right = match sent {
                    0..9 => found == after(false, false),
                    9 => found == after(false, false) || found == after(true, false),
                    10 => found == after(true, false) || found == after(true, true),
                    _ => found == after(true, true),
                };
                assert!(right, "dead {when} step {step}: the file is a mixture");
                let mut next = d.client();
                let file = next.open(&path, true);
                let pin = next.pin(file, 0..FILE, Mode::Write).unwrap();
                next.release(pin).unwrap();
                same(&std::fs::read(&path).unwrap(), &found, "after another client's pin");
            }
        }
        d.ends_clean();
    });
}
