//! The demo, and what it asks of a machine.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::{PROGRAM, errors, last_json, pageferry, scratch, shell};

#[test]
fn the_demo_agrees_with_itself() {
    let s = scratch((2 << 20) + 5);
    let before = std::fs::read(&s.file).unwrap();
    for args in [
        &["demo", "--json", "--size", "1m"][..],
        &["demo", "--json", "--file", "FILE", "--phases", "2"],
    ] {
        let output = pageferry(args, &s.file);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report = last_json(&output);
        assert_eq!(report["ok"], true);
        assert!(report["moved_bytes"].as_u64() < report["recopy_bytes"].as_u64());
    }
    assert!(std::fs::read(&s.file).unwrap() == before, "the demo changed the user's file");
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let s = scratch(1);
    for size in ["16777215t", "100t"] {
        for args in [&["demo", "--size", size][..], &["bench", "--size", size, "load"]] {
            let output = pageferry(args, &s.file);
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            assert!(errors(&output).contains("smaller size"), "{}", errors(&output));
        }
    }
}

#[test]
fn little_memory_is_an_error_and_no_abort() {
    let s = scratch(1);
    // Between the two lies a limit at which any program's next small allocation fails, which nobody can
    // answer for.
    for kib in [20_000, 60_000] {
        for line in ["demo --size 4m", "bench --size 8m --rounds 1 load"] {
            let output = shell(&format!("ulimit -v {kib}; $P {line}"), &s.file);
            assert!(matches!(output.status.code(), Some(0 | 1)), "{kib}: {}", errors(&output));
        }
    }
}

#[test]
fn the_demo_names_what_it_cannot_open() {
    let s = scratch(1);
    for (file, part) in [("/nonexistent", "No such file"), ("/", "not a regular file")] {
        let output = pageferry(&["demo", "--file", file], &s.file);
        assert_eq!(output.status.code(), Some(1));
        assert!(errors(&output).contains(part), "{}", errors(&output));
    }
}

#[test]
fn a_killed_demo_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["demo", "--size", "8m", "--phases", "1000"])
        .env("TMPDIR", dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // The file is there by then.
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("One file"), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
