//! The command, from outside.

mod bench;
mod daemon;
mod demo;
mod doctor;
mod failing;
mod holdings;
mod io;
mod metrics;
mod ranges;
mod run;
mod script;
mod serve;
mod sharing;
mod whole;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pageferry");

/// A scratch directory with a file of a pattern.
struct Scratch {
    _dir: tempfile::TempDir,
    file: PathBuf,
}

fn scratch(bytes: u64) -> Scratch {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, pattern(bytes)).unwrap();
    Scratch { _dir: dir, file }
}

fn pattern(bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| (at ^ (at >> 8) ^ (at >> 13)) as u8).collect()
}

fn pageferry(args: &[&str], file: &Path) -> Output {
    let args = args.iter().map(|a| if *a == "FILE" { file.as_os_str() } else { (*a).as_ref() });
    finished(Command::new(PROGRAM).args(args))
}

/// Runs a line of shell; `$P` is the program and `$F` the file.
fn shell(line: &str, file: &Path) -> Output {
    finished(Command::new("sh").args(["-c", line]).env("P", PROGRAM).env("F", file))
}

/// Runs a command to its end, which has to come: a hang is a failure, too.
fn finished(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let (id, (done, ended)) = (child.id(), channel());
    std::thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(output) = ended.recv_timeout(Duration::from_secs(120)) else {
        let _ = Command::new("kill").args(["-9", &id.to_string()]).status();
        panic!("{command:?} does not end");
    };
    let output = output.unwrap();
    let errors = errors(&output);
    for bad in ["panicked", "internal error", "memory allocation"] {
        assert!(!errors.contains(bad), "{command:?}: {errors}");
    }
    output
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn last_json(output: &Output) -> Value {
    let text = text(output);
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {text}"))
}
