//! What is said when things fail.

use std::process::{Command, Stdio};

use crate::{errors, last_json, pageferry, scratch, shell, text};

#[test]
fn failed_write_backs_say_where_the_bytes_are() {
    let s = scratch(8192);
    let common = ["io", "FILE", "-c", "pin -w 0 4k", "-c", "dwrite -S 7 0 4k"];
    let ends = ["-c", "fail copy-out", "-c", "unpin"];
    let output = pageferry(&[&common[..], &ends].concat(), &s.file);
    assert!(errors(&output).contains("kept on the device, and flush tries again"));
    // The session's end was such a try.
    assert!(!errors(&output).contains("at the end"), "{}", errors(&output));
    assert_eq!(std::fs::read(&s.file).unwrap()[..4096], [7; 4096]);
    let output = pageferry(&[&common[..], &["-c", "fail copy-out 99"]].concat(), &s.file);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("4096 bytes that the device wrote are LOST"));
}

#[test]
fn messages_are_not_doubled() {
    let s = scratch(8192);
    let said = |args: &[&str]| errors(&pageferry(args, &s.file));
    assert_eq!(said(&["io", "FILE", "-c", "unpin"]), "pageferry: unpin: nothing is pinned\n");
    assert!(said(&["io", "FILE", "-c", "dread -q 0 1"]).contains("unknown option '-q'"));
    let output = shell("ulimit -v 100000; $P io $F --device-memory 1t -c stats", &s.file);
    assert_eq!(errors(&output).matches("Cannot allocate memory").count(), 1, "{}", errors(&output));
}

#[test]
fn what_is_armed_and_pinned_is_told() {
    let s = scratch(8192);
    let said = |command| text(&pageferry(&["io", "FILE", "-c", command], &s.file));
    assert!(said("pin -o 0 4k").contains("for overwriting"));
    assert!(said("fail alloc 0").contains("disarmed"));
    let args =
        ["io", "FILE", "-c", "fail device-lost", "-c", "fail device-lost 0", "-c", "dread 0 1"];
    assert!(pageferry(&args, &s.file).status.success());
}

#[test]
fn a_file_that_can_only_be_read_hints_at_r() {
    let s = scratch(0);
    let copy = s.file.with_file_name("busy");
    std::fs::copy("/bin/sleep", &copy).unwrap();
    let running = Command::new(&copy).arg("60").stdin(Stdio::null()).spawn();
    let Ok(mut running) = running else {
        println!("skipped: programs cannot be run from the directory for temporary files");
        return;
    };
    let output = pageferry(&["io", "FILE", "-c", "stats"], &copy);
    let stat = last_json(&pageferry(&["stat", "FILE", "--json"], &copy));
    running.kill().unwrap();
    running.wait().unwrap();
    let busy = errors(&output);
    if output.status.success() {
        println!("skipped: this kernel lets running programs be written");
        return;
    }
    assert!(busy.contains("Text file busy") && busy.contains("-r opens it"), "{busy}");
    assert_eq!(stat["writable"], false);
}

#[test]
fn options_that_make_no_sense_are_named() {
    let s = scratch(100);
    for (args, part) in [
        (&["io", "FILE", "--flush-age", "nan", "-c", "stats"][..], "not a time in seconds"),
        (&["io", "FILE", "--flush-age", "-1", "-c", "stats"], "not a time in seconds"),
        (&["io", "FILE", "--frame", "4b", "-c", "stats"], "block"),
    ] {
        let output = pageferry(args, &s.file);
        assert!(errors(&output).contains(part), "{}", errors(&output));
        assert_eq!(output.status.code(), Some(2));
    }
}

#[test]
fn a_store_without_space_says_so() {
    let s = scratch(0);
    let line = "mkdir $F.d && mount -t tmpfs -o size=1m none $F.d && truncate -s 4m $F.d/f && \
        $P io $F.d/f --json -c 'mmap 0 4m' -c 'mwrite 0 4m'";
    let output = shell(&format!("unshare -m sh -c \"{line}\""), &s.file);
    if errors(&output).contains("unshare") || errors(&output).contains("mount") {
        println!("skipped: no mount namespace: {}", errors(&output));
        return;
    }
    let answer = last_json(&output);
    assert_eq!(answer["error"]["errno"], 14, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("file system is full"));
}

#[test]
fn a_pin_that_was_cut_says_so() {
    let s = scratch(100 << 10);
    let commands = ["pin -w 0 64k", "truncate 5000", "truncate 100k", "dread 8k 4"];
    let args: Vec<&str> =
        ["io", "FILE"].into_iter().chain(commands.iter().flat_map(|c| ["-c", c])).collect();
    let said = errors(&pageferry(&args, &s.file));
    assert!(said.contains("cut off from the pin of 0..65536"), "{said}");
}

#[test]
fn a_read_pin_has_nothing_to_keep_away() {
    let s = scratch(8192);
    let args = ["io", "--guard", "none", "FILE", "-c", "pin 0 4k", "-c", "unpin -k"];
    let output = pageferry(&args, &s.file);
    assert!(output.status.success(), "{}", errors(&output));
}

#[test]
fn a_kernel_on_numbers_counts_whole_numbers() {
    let s = scratch(4097);
    let output = pageferry(&["run", "add", "FILE"], &s.file);
    assert!(text(&output).contains("changed 4096 bytes"), "{}", text(&output));
}

#[test]
fn where_says_that_the_file_ends_before() {
    let s = scratch(100);
    let output = pageferry(&["where", "FILE", "2g", "1"], &s.file);
    assert!(text(&output).starts_with("past the end of the file\n"), "{}", text(&output));
}

#[test]
fn a_full_standard_output_is_named() {
    let s = scratch(100);
    let said = errors(&shell("$P stat $F > /dev/full", &s.file));
    assert!(said.contains("writing to standard output"), "{said}");
}

#[test]
fn a_failed_sha256sum_is_told_by_its_status() {
    let s = scratch(1 << 20);
    let line = "mkdir $F.d && printf '#!/bin/sh\nexit 3\n' > $F.d/sha256sum && \
        chmod +x $F.d/sha256sum && PATH=$F.d:$PATH $P demo --size 1m --phases 1";
    let said = errors(&shell(line, &s.file));
    assert!(said.contains("exit status: 3"), "{said}");
}
