//! The command, from outside.

mod io;
mod run;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

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
    let output = Command::new(env!("CARGO_BIN_EXE_pageferry"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panicked") && !errors.contains("internal error"), "{errors}");
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn last_json(output: &Output) -> Value {
    let text = text(output);
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {text}"))
}
