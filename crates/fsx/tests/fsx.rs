//! The exerciser, run as its users run it.

use std::path::Path;
use std::process::{Command, Output};

fn fsx(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pageferry-fsx")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The temporary directory, and memory, where there is a file system in it.
fn dirs() -> Vec<String> {
    let tmp = std::env::temp_dir().display().to_string();
    let shm = Some("/dev/shm".to_owned()).filter(|shm| Path::new(shm).is_dir());
    if shm.is_none() {
        println!("skipped: /dev/shm, there is none");
    }
    [tmp].into_iter().chain(shm).collect()
}

fn no_difference(args: &[&str]) {
    for dir in dirs() {
        let run = fsx(&[&["--dir", &dir, "--ops", "2000", "--shrink"], args].concat());
        let (out, err) = (text(&run.stdout), text(&run.stderr));
        assert_eq!(run.status.code(), Some(0), "{dir}: {out}{err}");
        assert!(out.contains("no difference"), "{out}");
    }
}

#[test]
fn the_cache_alone() {
    no_difference(&["--no-foreign", "--seeds", "4"]);
}

#[test]
fn with_outsiders() {
    no_difference(&["--seeds", "4"]);
}

#[test]
fn with_a_daemons_cache() {
    no_difference(&["--daemon", "--no-foreign", "--seeds", "2", "--seed", "200"]);
    no_difference(&["--daemon", "--seeds", "2", "--seed", "300"]);
}

/// Outsiders are not asked to wait for a flush: the lease makes them.
#[test]
fn with_outsiders_under_a_lease() {
    no_difference(&["--guard", "lease", "--seeds", "4", "--seed", "100"]);
}

#[test]
fn other_shapes() {
    for args in [
        &["--no-foreign", "--size", "300001", "--start", "0", "--device-memory", "128k"][..],
        &["--no-foreign", "--frame", "256k", "--device-memory", "1m", "--touch", "4k"],
        &["--no-foreign", "--flush-age", "1"],
        &["--size", "5m", "--every", "0"],
    ] {
        no_difference(args);
    }
}

#[test]
fn every_kind_of_operation_is_done() {
    let args = ["--ops", "6000", "--no-foreign", "--json", "--weights"];
    let run = fsx(&[&args[..], &["foreign-hold=5,foreign-let-go=5"]].concat());
    let json: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(json["failure"], serde_json::Value::Null);
    for kind in ["cache-store", "cache-zero", "poke", "view", "foreign-hold", "foreign-load"] {
        assert!(json["kinds"][kind]["done"].as_u64() > Some(0), "{kind}: {}", json["kinds"]);
    }
    for path in
        ["device", "device, held pin", "device, view", "cache read", "mapping", "foreign read"]
    {
        assert!(json["compared_bytes"][path].as_u64() > Some(1000), "{path}");
    }
    for counter in ["evictions", "traps", "writebacks"] {
        assert!(json["counters"][counter].as_u64() > Some(0), "{counter}");
    }
}

fn found_and_shrunk(sabotage: &str, at_most: usize, culprit: &str) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("found.ops").display().to_string();
    let args =
        ["--sabotage", sabotage, "--no-maps", "--no-foreign-maps", "--shrink", "--out", &out];
    let run = fsx(&args);
    let stdout = text(&run.stdout);
    assert_eq!(run.status.code(), Some(1), "{stdout}{}", text(&run.stderr));
    for part in ["DIFFERENCE in seed 1, step ", "expected ", "got ", "first at 0x", "shrunk to "] {
        assert!(stdout.contains(part), "no '{part}' in {stdout}");
    }
    let sequence = std::fs::read_to_string(&out).unwrap();
    let ops: Vec<&str> =
        sequence.lines().filter(|l| !l.starts_with('#') && !l.starts_with("set ")).collect();
    assert!(ops.len() <= at_most, "{sequence}");
    assert!(ops.iter().any(|op| op.contains(culprit)), "{sequence}");
    // It fails again, with nothing but the file to go by.
    let again = fsx(&["--replay", &out, "--out", &out]);
    assert_eq!(again.status.code(), Some(1), "{}", text(&again.stdout));
}

#[test]
fn a_lost_device_store_is_found_and_shrunk() {
    found_and_shrunk("skip-device-store", 2, "stint ");
}

#[test]
fn a_misplaced_foreign_copy_is_found_and_shrunk() {
    found_and_shrunk("shift-copies", 2, " copy-from ");
}

#[test]
fn one_seed_decides_everything() {
    let dir = tempfile::tempdir().unwrap();
    let record = |name: &str, seed: &str| {
        let path = dir.path().join(name);
        let args = ["--seed", seed, "--ops", "500", "--no-maps", "--no-foreign-maps", "--record"];
        fsx(&[&args[..], &[path.to_str().unwrap()]].concat());
        std::fs::read_to_string(path).unwrap()
    };
    let first = record("first", "3");
    assert_eq!(first.lines().filter(|l| !l.starts_with('#')).count(), 501);
    assert_eq!(first, record("second", "3"));
    assert_ne!(first, record("third", "4"));
}

#[test]
fn a_hang_is_told_with_its_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("hang.ops").display().to_string();
    // No step may last longer than no time at all.
    let args = ["--ops", "100m", "--hang-seconds", "0", "--no-foreign", "--out", &out];
    // The files stay where they are, as evidence.
    let here = ["--dir", dir.path().to_str().unwrap()];
    let run = fsx(&[&args[..], &here].concat());
    assert_eq!(run.status.code(), Some(1));
    assert!(text(&run.stderr).contains("HANG in step "), "{}", text(&run.stderr));
    assert!(std::fs::read_to_string(&out).unwrap().starts_with("set size="));
}

#[test]
fn errors_are_told_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = dir.path().join("garbage").display().to_string();
    std::fs::write(&garbage, "set size=1m\nfly to=3\n").unwrap();
    for (args, part) in [
        (&["--size", "0"][..], "--size 0 is not"),
        (&["--size", "x"], "'x' is not a number"),
        (&["--start", "2m"], "--start 2097152 is more than"),
        (&["--frame", "5"], "a frame of 5 bytes"),
        (&["--touch", "5"], "touch granule of 5 bytes"),
        (&["--device-memory", "1"], "hold no frame"),
        (&["--weights", "fly=1"], "'fly' is no kind of operation"),
        (&["--weights", "pin"], "'pin' is not kind=number"),
        (&["--guard", "dog"], "invalid value 'dog'"),
        (&["--dir", "/nowhere"], "making a directory in /nowhere"),
        (&["--file", "/nowhere/file"], "making /nowhere/file"),
        (&["--replay", "/nowhere/file"], "reading /nowhere/file"),
        (&["--replay", &garbage], "line 2: 'fly' is no operation"),
        (&["--replay", &garbage, "--seed", "3"], "cannot be used with"),
        (&["--fast"], "unexpected argument"),
    ] {
        let run = fsx(args);
        let err = text(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{args:?}: {err}");
        assert!(err.contains(part), "{args:?}: {err}");
    }
}
