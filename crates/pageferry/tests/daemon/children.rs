//! Clients in processes of their own, which can be stopped and killed and be another user's: the test program once
//! more, told what to play.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use crate::raw::{Raw, span};
use pageferry_wire::{Mode, Request, Wait};

/// What a process plays, with the socket and a file.
const PART: &str = "PAGEFERRY_PART";

/// A process, killed when dropped.
pub struct Player {
    child: Child,
    said: BufReader<ChildStdout>,
    told: Option<ChildStdin>,
}

/// Starts a process; `how` may change the command.
pub fn play(part: &str, arguments: &[&str], how: impl FnOnce(&mut Command)) -> Player {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["children::player", "--exact", "--nocapture", "--test-threads=1"])
        .env(PART, [&[part], arguments].concat().join("\n"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    how(&mut command);
    let mut child = command.spawn().unwrap();
    let said = BufReader::new(child.stdout.take().unwrap());
    let told = child.stdin.take();
    Player { child, said, told }
}

impl Player {
    /// What it says next; `None`: it has ended.
    pub fn says(&mut self) -> Option<String> {
        let mut line = String::new();
        while self.said.read_line(&mut line).unwrap() > 0 {
            // The test runner says things too, on the same line.
            if let Some((_, said)) = line.trim_end().split_once('@') {
                return Some(said.into());
            }
            line.clear();
        }
        None
    }

    #[track_caller]
    pub fn must_say(&mut self, what: &str) {
        assert_eq!(self.says().as_deref(), Some(what));
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a process of ours that was not waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) -> ExitStatus {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().unwrap()
    }

    /// Nobody will tell it anything.
    pub fn hears_no_more(&mut self) {
        drop(self.told.take());
    }

    pub fn ends(&mut self) -> ExitStatus {
        self.hears_no_more();
        self.child.wait().unwrap()
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn say(what: &str) {
    println!("@{what}");
}

/// Waits for a line; `false`: nobody will say anything.
pub fn heard() -> bool {
    std::io::stdin().read_line(&mut String::new()).unwrap() > 0
}

/// The process's part. No test of its own.
#[test]
fn player() {
    let Ok(part) = std::env::var(PART) else { return };
    let arguments: Vec<&str> = part.split('\n').collect();
    match arguments[..] {
        ["read", socket, path] => hold(socket, path, Mode::Read),
        ["write", socket, path] => hold(socket, path, Mode::Write),
        ["wait", socket, path] => wait_for_pin(socket, path),
        ["load", socket, path] => load(socket, path),
        ["user", socket, dir] => crate::users::as_nobody(socket, dir),
        ["unread", files] => crate::unread::weak_daemon(files.parse().unwrap()),
        ["attempt", pid, fd] => crate::frames::attempts(&format!("/proc/{pid}/fd/{fd}")),
        ["serve", socket] => crate::killed::serve(socket),
        ["steps", socket, path, at, when] => {
            crate::steps::client(socket, path, at.parse().unwrap(), when == "before");
        }
        _ => panic!("no such part: {part}"),
    }
}

/// Pins and stays.
fn hold(socket: &str, path: &str, mode: Mode) {
    let mut raw = Raw::greeted(Path::new(socket));
    let file = raw.open(Path::new(path), mode != Mode::Read);
    let pin = raw.pin(file, 0..4096, mode).unwrap();
    raw.frames(pin, 0, 1).unwrap();
    say("holds");
    heard();
}

/// Waits for a pin that another has.
fn wait_for_pin(socket: &str, path: &str) {
    let mut raw = Raw::greeted(Path::new(socket));
    let file = raw.open(Path::new(path), true);
    let ranges = vec![span(0..4096)];
    let (mode, wait) = (Mode::Write, Wait::Block);
    raw.send(Request::Pin { file, ranges, mode, wait, owner: None }, &[]);
    say("waits");
    heard();
}

/// Pins all of a file, which takes its time.
fn load(socket: &str, path: &str) {
    let mut raw = Raw::greeted(Path::new(socket));
    let bytes = std::fs::metadata(path).unwrap().len();
    let file = raw.open(Path::new(path), true);
    let ranges = vec![span(0..bytes)];
    let (mode, wait) = (Mode::Write, Wait::Block);
    raw.send(Request::Pin { file, ranges, mode, wait, owner: None }, &[]);
    say("loads");
    heard();
}
