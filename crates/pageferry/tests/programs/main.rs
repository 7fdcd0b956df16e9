//! Programs that have never heard of us work on files while this process pins them, evicts them and
//! pins them for writing without storing: what comes out is what comes out without us.
//!
//! `PAGEFERRY_PROGRAM_ROUNDS=n` makes each longer (default 1). What is not installed is skipped.

/// Says that a test could not be made here, past the runner's capture: a skip is never silent.
macro_rules! skipped {
    ($($why:tt)*) => { crate::tell(&format!("skipped: {}", format_args!($($why)*))) };
}

/// With PAGEFERRY_CONNECTED=1 the cache is a daemon's.
const CONNECTED: bool = false;

#[path = "../suite/common.rs"]
mod common;
mod copies;
mod exerciser;
mod git;
mod pest;
mod sqlite;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::same;
use crate::pest::Pest;

fn tell(line: &str) {
    use std::io::Write;
    // Nobody to tell is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// How much longer than usual.
fn rounds() -> u32 {
    std::env::var("PAGEFERRY_PROGRAM_ROUNDS").map_or(1, |n| n.parse().unwrap())
}

fn installed(program: &str) -> bool {
    let mut asked = Command::new(program);
    let quiet = asked.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    let found = quiet.status().is_ok();
    if !found {
        skipped!("{program} is not installed");
    }
    found
}

/// What a program that succeeds says.
fn run(command: &mut Command) -> Vec<u8> {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{}{}", text(&stdout), text(&stderr));
    stdout
}

/// Does the same in two directories, in one of them under pins, and compares what comes out.
fn beside_us(name: &str, work: impl Fn(&Path) -> Vec<u8>) {
    let calm = tempfile::tempdir().unwrap();
    let expected = work(calm.path());
    let dir = tempfile::tempdir().unwrap();
    let pest = Pest::start(dir.path(), 77);
    let got = work(dir.path());
    let tally = pest.finish();
    same(&got, &expected, name);
    assert!(!got.is_empty(), "{name}: nothing came out");
    tell(&format!("{name} beside {tally}"));
}
