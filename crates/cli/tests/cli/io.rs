//! The workbench.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{pageferry, pattern, scratch, text};

/// Runs commands with small frames; each answer, and whether the whole succeeded.
fn bench(bytes: u64, commands: &[&str]) -> (Vec<Value>, bool, Vec<u8>) {
    let s = scratch(bytes);
    let mut args = vec![
        "io",
        "--device-memory",
        "256k",
        "--frame",
        "64k",
        "--flush-age",
        "0",
        "--json",
        "FILE",
    ];
    for command in commands {
        args.extend(["-c", command]);
    }
    let output = pageferry(&args, &s.file);
    let answers = text(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    (answers, output.status.success(), std::fs::read(&s.file).unwrap())
}

fn kinds(answers: &[Value]) -> Vec<&str> {
    answers.iter().map(|a| a["error"]["kind"].as_str().unwrap_or("ok")).collect()
}

#[test]
fn device_and_cpu_take_turns() {
    let (a, ok, file) = bench(
        128 << 10,
        &[
            "pin -w 0 64k",
            "dwrite -S 7 100 4k",
            "where 0 64k",
            "pread -v 100 4",
            "unpin",
            "pread -v 100 4",
            "dadd 5 0 8",
            "dsum 0 128k",
        ],
    );
    assert!(ok, "{a:?}");
    assert_eq!(a[0]["pin"], 1);
    assert_eq!(a[2]["ranges"][0]["state"], "away");
    assert_eq!(a[2]["ranges"][0]["pinned"], true);
    assert_eq!(a[3]["data"], hex(&pattern(128 << 10)[100..104]), "the old bytes until the release");
    assert_eq!(a[4]["bytes"], 8192, "both pages that were stored to");
    assert_eq!(a[5]["data"], "07070707");
    let mut model = pattern(128 << 10);
    model[100..4196].fill(7);
    for element in model[..8].as_chunks_mut::<4>().0 {
        *element = (u32::from_le_bytes(*element) + 5).to_le_bytes();
    }
    assert!(file == model);
    assert_eq!(a[7]["sha256"], hex(&Sha256::digest(&model)));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn mapping_commands_use_file_offsets() {
    let (a, ok, file) = bench(
        64 << 10,
        &[
            "mmap 8k 8k",
            "mwrite -S 0xff 8k 10",
            "mread -v 8k 4",
            "mread 0 1",
            "msync",
            "munmap",
            "munmap",
        ],
    );
    assert_eq!(kinds(&a), ["ok", "ok", "ok", "usage", "ok", "ok", "usage"]);
    assert!(!ok);
    assert_eq!(a[2]["data"], "ffffffff");
    assert_eq!(file[8192..8202], [255; 10]);
}

#[test]
fn what_would_hang_is_an_error() {
    let (a, ok, _) = bench(
        64 << 10,
        &[
            "mmap 0 64k",
            "pin -w 0 4k",
            "mread 0 1",
            "mwrite -S 1 0 1",
            "pwrite -S 1 0 1",
            "pin 0 4k",
            "pin -t 0.01 0 4k",
            "dread 4k 4k",
            "unpin",
            "mread 0 1",
        ],
    );
    let dead = "would-deadlock";
    assert_eq!(kinds(&a), ["ok", "ok", dead, dead, dead, dead, dead, "ok", "ok", "ok"]);
    assert!(!ok);
    assert_eq!(a[2]["error"]["errno"], 35);
}

#[test]
fn failures_on_demand_lose_nothing() {
    let (a, _, file) = bench(
        64 << 10,
        &[
            "fail alloc",
            "dread 0 4k",
            "dread 0 4k",
            "fail copy_in",
            "dread 8k 4k",
            "fail copy-out",
            "pin -w 0 4k",
            "dwrite -S 3 0 4k",
            "unpin",
            "where 0 4k",
            "flush",
            "fail nonsense",
        ],
    );
    let error = "device-error";
    let expected = ["ok", error, "ok", "ok", error, "ok", "ok", "ok", error, "ok", "ok", "usage"];
    assert_eq!(kinds(&a), expected);
    assert_eq!(a[9]["ranges"][0]["state"], "away");
    assert_eq!(file[..4096], [3; 4096]);
}

#[test]
fn a_read_pin_cannot_be_written_and_full_is_full() {
    let (a, _, _) = bench(
        1 << 20,
        &[
            "pin 0 64k",
            "dwrite -S 1 0 1",
            "unpin 9",
            "unpin 1",
            "unpin",
            "pin 0 512k",
            "pin 0 256k",
            "pin 256k 1",
            "prefetch 256k 64k",
        ],
    );
    let full = "device-full";
    assert_eq!(kinds(&a), ["ok", "outside-pin", "usage", "ok", "usage", full, "ok", full, "ok"]);
    assert_eq!(a[1]["error"]["errno"], 1);
    assert_eq!(a[8]["bytes"], 0);
}

#[test]
fn truncation_and_holes() {
    let (a, _, file) = bench(
        64 << 10,
        &[
            "pin -w 0 64k",
            "dwrite -S 9 0 64k",
            "truncate 5000",
            "unpin",
            "truncate 10k",
            "fpunch 0 1k",
            "falloc 0 12k",
            "fsync",
            "evict 0 64k",
            "pread 12k 1k",
            "stats",
        ],
    );
    assert_eq!(kinds(&a)[3], "file-shrunk");
    assert!(a.iter().enumerate().all(|(n, a)| n == 3 || a["ok"] == true), "{a:?}");
    assert_eq!(a[9]["bytes"], 0);
    assert!(a[10]["counters"]["written_back_bytes"].as_u64().unwrap() >= 5000);
    let mut model = vec![9; 5000];
    model.resize(12 << 10, 0);
    model[..1024].fill(0);
    assert!(file == model);
}

#[test]
fn keep_away_lasts_until_somebody_looks() {
    let (a, ok, _) = bench(
        64 << 10,
        &[
            "pin -w 0 4k",
            "dwrite -S 1 0 10",
            "unpin -k",
            "!true",
            "where 0 4k",
            "pread -v 0 1",
            "where 0 4k",
        ],
    );
    assert!(ok, "{a:?}");
    assert_eq!(a[4]["ranges"][0]["state"], "away");
    assert_eq!(a[5]["data"], "01");
    assert_eq!(a[6]["ranges"][0]["state"], "copy");
}

#[test]
fn scripts_come_from_standard_input_and_x_stops_them() {
    let s = scratch(8192);
    for (flag, expected) in [(&["-x"][..], 2), (&[], 3)] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pageferry"))
            .args(["io", "--json"])
            .args(flag)
            .arg(&s.file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let script = b"# a comment\n\npin 0 4k\nfrobnicate\nunpin\nquit\npin 0 4k\n";
        child.stdin.take().unwrap().write_all(script).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output).lines().count(), expected, "{}", text(&output));
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn every_mistake_has_its_line_and_status() {
    let s = scratch(100);
    for (args, part) in [
        (&["io", "/", "-c", "stats"][..], "directory"),
        (&["io", "/nonexistent/file", "-c", "stats"], "No such file"),
        (&["io", "FILE", "--frame", "5k", "-c", "stats"], "frame"),
        (&["io", "FILE", "--device-memory", "1k", "-c", "stats"], "frame"),
        (&["io", "-r", "FILE", "-c", "pwrite -S 1 0 1"], "read-only"),
        (&["io", "FILE", "-c", "pread 0 99999999999999999999"], "number"),
        (&["io", "FILE", "-c", "pread 0 1g1"], "unit"),
        (&["run", "saxpy", "FILE"], "two files"),
        (&["run", "xor", "FILE", "--value", "300"], "255"),
        (&["where", "FILE", "18446744073709551615", "1"], "wraps"),
        (&["stat", "/dev/null"], "character device"),
    ] {
        let output = pageferry(args, &s.file);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains(part), "{args:?}: {errors}");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
    }
    assert_eq!(pageferry(&["io", "FILE", "--frame", "x"], &s.file).status.code(), Some(2));
}

#[test]
fn a_closed_pipe_is_no_failure_of_ours() {
    let s = scratch(1 << 20);
    let command = format!(
        "{} io {} -c 'pread -v 0 1m' | head -1",
        env!("CARGO_BIN_EXE_pageferry"),
        s.file.display()
    );
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text(&output).starts_with("00000000:  00 01 02"));
}

#[test]
fn doctor_stat_and_where_answer() {
    let s = scratch(10_000);
    let doctor = crate::last_json(&pageferry(&["doctor", "--json"], &s.file));
    assert!(doctor["capabilities"].as_array().unwrap().len() > 5);
    let stat = crate::last_json(&pageferry(&["stat", "FILE", "--json"], &s.file));
    assert_eq!((stat["bytes"].as_u64(), stat["pages"].as_u64()), (Some(10_000), Some(3)));
    let place = crate::last_json(&pageferry(&["where", "FILE", "0", "1m", "--json"], &s.file));
    assert_eq!(
        (place["ranges"][0]["state"].as_str(), place["ranges"][0]["len"].as_u64()),
        (Some("home"), Some(10_000))
    );
}

#[test]
fn where_tells_of_the_file_as_long_as_others_have_made_it() {
    let s = scratch(64 << 10);
    let truncate = |size: &str| format!("!truncate -s {size} {}", s.file.display());
    let (shorter, longer) = (truncate("5000"), truncate("40000"));
    let commands =
        ["prefetch 0 64k", "where 0 64k", &shorter, "where 0 64k", &longer, "where 0 64k"];
    let mut args = vec!["io", "--json", "FILE"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let output = pageferry(&args, &s.file);
    let answers: Vec<Value> =
        text(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let ends = |answer: &Value| {
        let last = answer["ranges"].as_array().unwrap().last().unwrap();
        last["off"].as_u64().unwrap() + last["len"].as_u64().unwrap()
    };
    let told: Vec<u64> = [1, 3, 5].iter().map(|n| ends(&answers[*n])).collect();
    assert_eq!(told, [64 << 10, 5000, 40_000], "{answers:?}");
}
