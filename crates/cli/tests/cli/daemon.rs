//! A daemon and its clients, as processes.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{PROGRAM, pageferry, pattern};

/// Nothing is waited for longer; what takes so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with small frames. It is killed when this is dropped.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) socket: PathBuf,
    log: PathBuf,
    pub(crate) dir: tempfile::TempDir,
}

impl Daemon {
    pub(crate) fn start(options: &[&str]) -> Daemon {
        Daemon::start_in(tempfile::tempdir().unwrap(), options)
    }

    /// In a directory where a daemon may have been before.
    pub(crate) fn start_in(dir: tempfile::TempDir, options: &[&str]) -> Daemon {
        let socket = dir.path().join("socket");
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg("--socket").arg(&socket);
        command.args(["--device-memory", "4m", "--frame", "64k", "--flush-age", "0"]);
        command.args(options).stdin(Stdio::null());
        Daemon::spawn(dir, socket, &mut command)
    }

    /// Returns when it says that it serves.
    pub(crate) fn spawn(dir: tempfile::TempDir, socket: PathBuf, command: &mut Command) -> Daemon {
        let log = dir.path().join("log");
        let errors = std::fs::File::create(&log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(errors).spawn().unwrap();
        let said = Lines::of(child.stdout.take().unwrap()).next();
        let daemon = Daemon { child, socket, log, dir };
        assert!(said.starts_with("serving 4.0 MiB at "), "{said}{}", daemon.log());
        daemon
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the log has so many lines with a text.
    pub(crate) fn expect_log(&self, text: &str, lines: usize) {
        let seen = || self.log().lines().filter(|line| line.contains(text)).count() >= lines;
        assert!(eventually(seen), "not {lines} times in the log: {text}\n{}", self.log());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child)
    }

    /// A file beside it.
    pub(crate) fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, pattern(bytes)).unwrap();
        path
    }

    /// Where it listens, for the command line.
    pub(crate) fn at(&self) -> &str {
        self.socket.to_str().unwrap()
    }

    /// Runs a command to its end; CONNECT and FILE stand for what they say.
    pub(crate) fn run(&self, args: &[&str], file: &Path) -> Output {
        let args: Vec<&str> = args
            .iter()
            .flat_map(|arg| match *arg {
                "CONNECT" => vec!["--connect", self.at()],
                arg => vec![arg],
            })
            .collect();
        pageferry(&args, file)
    }

    /// Copies of a file serve more than one pin here; says so where they do not.
    pub(crate) fn proves(&self, file: &Path) -> bool {
        let stat = self.run(&["stat", "CONNECT", "FILE", "--json"], file);
        let stat = crate::last_json(&stat);
        let proven = matches!(stat["reuse"].as_str(), Some("proven" | "fixed"));
        if !proven {
            println!("skipped: nothing is proven of this file: {stat}");
        }
        proven
    }

    pub(crate) fn client(&self, file: &Path) -> Client {
        Client::start(Path::new(PROGRAM), &self.socket, file)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A workbench that is told its commands one by one. It is killed when this is dropped.
pub(crate) struct Client {
    child: Child,
    commands: ChildStdin,
    answers: Lines,
}

impl Client {
    pub(crate) fn start(program: &Path, socket: &Path, file: &Path) -> Client {
        let mut child = Command::new(program)
            .args(["io", "--json", "--connect"])
            .args([socket, file])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = Lines::of(child.stdout.take().unwrap());
        Client { child, commands, answers }
    }

    /// What comes of a command.
    pub(crate) fn ask(&mut self, command: &str) -> Value {
        self.begin(command);
        self.answer()
    }

    /// Gives a command whose answer may have to be waited for.
    pub(crate) fn begin(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
    }

    pub(crate) fn answer(&mut self) -> Value {
        let answer = self.answers.next();
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}"))
    }

    /// As [`ask`](Self::ask), where it has to work.
    pub(crate) fn does(&mut self, command: &str) -> Value {
        let answer = self.ask(command);
        assert_eq!(answer["ok"], true, "{answer}");
        answer
    }

    /// How a command fails.
    pub(crate) fn fails(&mut self, command: &str) -> String {
        let answer = self.ask(command);
        assert_eq!(answer["ok"], false, "{answer}");
        answer["error"]["kind"].as_str().unwrap().into()
    }

    pub(crate) fn count(&mut self, name: &str) -> u64 {
        self.does("stats")["counters"][name].as_u64().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as the kernel does when memory is short.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines that a process writes.
pub(crate) struct Lines(Receiver<String>);

impl Lines {
    pub(crate) fn of(stream: impl Read + Send + 'static) -> Lines {
        let (out, lines) = channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
            // Until nobody wants to know.
            lines.all(|line| out.send(line).is_ok())
        });
        Lines(lines)
    }

    /// The next one, which has to come; an empty one at the end.
    pub(crate) fn next(&self) -> String {
        match self.0.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => String::new(),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("no line comes"),
        }
    }
}

/// Looks until it is so, or for very long.
pub(crate) fn eventually(mut so: impl FnMut() -> bool) -> bool {
    let pause = Duration::from_millis(10);
    (0..PATIENCE.as_millis() / pause.as_millis()).any(|_| {
        let is = so();
        if !is {
            std::thread::sleep(pause);
        }
        is
    })
}

pub(crate) fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    let over = eventually(|| {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert!(over, "process {} does not end", child.id());
    status.unwrap()
}
