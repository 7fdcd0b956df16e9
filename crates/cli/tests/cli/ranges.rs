//! Ranges against the end of the file, and the command line of xfs_io.

use serde_json::Value;

use crate::{last_json, pageferry, pattern, scratch, text};

/// Runs commands with `--json` on a file of a pattern.
fn answers(bytes: u64, commands: &[&str]) -> (Vec<Value>, Vec<u8>) {
    let s = scratch(bytes);
    let mut args = vec!["io", "--json", "FILE"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let output = pageferry(&args, &s.file);
    let answers = text(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    (answers, std::fs::read(&s.file).unwrap())
}

#[test]
fn device_ranges_far_past_the_end_are_refused_at_once() {
    let lines = ["dadd 1 0 18446744073709551615", "dadd 1 0 1t", "dsum 0 1t", "dwrite -S 1 0 1t"];
    let (answers, file) = answers(100, &lines);
    assert!(answers.iter().all(|a| a["error"]["kind"] == "past-eof"), "{answers:?}");
    assert_eq!(file, pattern(100));
}

#[test]
fn what_lies_past_the_end_is_not_reported_as_done() {
    let commands = ["dread -v 0 4k", "dwrite -S 7 50 4000", "dadd 1 0 4k", "dread 200 10"];
    let (a, file) = answers(100, &commands);
    let bytes: Vec<_> = a.iter().map(|a| a["bytes"].as_u64().unwrap()).collect();
    assert_eq!(bytes, [100, 50, 100, 0]);
    assert_eq!(a[0]["data"].as_str().unwrap().len(), 200);
    assert_eq!((file.len(), file[51]), (100, 7));
    let s = scratch(100);
    let said = text(&pageferry(&["io", "FILE", "-c", "dwrite -S 7 50 4000"], &s.file));
    assert!(said.contains("wrote 50 bytes") && said.contains("last 3950"), "{said}");
}

#[test]
fn reading_far_past_the_end_takes_no_memory() {
    let s = scratch(5000);
    for command in ["pread 0 3g", "pread -v 0 3g", "pread 0 8000000t"] {
        let line = format!("ulimit -v 1000000; $P io $F --json -c '{command}'");
        let answer = last_json(&crate::shell(&line, &s.file));
        assert_eq!(answer["bytes"], 5000, "{command}: {answer}");
    }
}

#[test]
fn lines_of_xfs_io_work() {
    let commands = [
        "pwrite 0 4k",
        "pread -v 4090 12 -b 5",
        "pwrite -q -b 3 -S 7 4k 10",
        "mmap -rw 0 8k",
        "mwrite 8000 16",
        "mread -v 8000 4",
        "msync -s 0 4k",
        "msync -a",
        "msync",
        "munmap",
        "dread 0 4 -v",
    ];
    let (a, file) = answers(8192, &commands);
    assert!(a.iter().all(|a| a["ok"] == true), "{a:?}");
    assert_eq!(file[..4096], [0xcd; 4096]);
    assert_eq!(file[4096..4106], [7; 10]);
    assert_eq!(a[5]["data"], "58585858");
    assert_eq!(a[10]["data"], "cdcdcdcd");
    let s = scratch(100);
    let output = pageferry(&["io", "FILE", "-c", "pwrite -q 0 4", "-c", "pread -qv 0 4"], &s.file);
    assert!(output.status.success() && output.stdout.is_empty());
}

#[test]
fn reading_and_writing_go_in_pieces() {
    let bytes = (3 << 20) + 5;
    let (a, file) = answers(bytes, &["pread 1 4m", "pwrite -S 9 7 3m", "mmap 0 3m", "mread 0 3m"]);
    let n: Vec<_> = a.iter().map(|a| a["bytes"].as_u64().unwrap()).collect();
    assert_eq!(n, [bytes - 1, 3 << 20, 3 << 20, 3 << 20]);
    let mut model = pattern(bytes);
    model.resize((3 << 20) + 7, 0);
    model[7..].fill(9);
    assert!(file == model);
}

#[test]
fn read_only_is_read_only() {
    let s = scratch(100);
    for flags in ["-rf", "-r"] {
        let output = pageferry(&["io", flags, "FILE", "--json", "-c", "pwrite 0 4"], &s.file);
        assert_eq!(last_json(&output)["error"]["kind"], "read-only");
    }
    assert_eq!(std::fs::read(&s.file).unwrap(), pattern(100));
    let new = s.file.with_file_name("new");
    let args = ["io", "-r", "-f", "FILE", "-c", "pread 0 1"];
    assert!(pageferry(&args, &new).status.success());
    assert_eq!(std::fs::read(&new).unwrap(), b"");
    assert!(pageferry(&["io", "-f", "FILE", "-c", "pwrite 0 4"], &s.file).status.success());
}

#[test]
fn truncating_and_creating_open_for_writing() {
    let s = scratch(100);
    assert!(pageferry(&["io", "-t", "FILE", "-c", "pwrite 0 4"], &s.file).status.success());
    assert_eq!(std::fs::read(&s.file).unwrap(), [0xcd; 4]);
    assert_eq!(
        pageferry(&["io", "-r", "-t", "FILE", "-c", "stats"], &s.file).status.code(),
        Some(2)
    );
}
