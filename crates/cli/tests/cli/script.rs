//! Scripts: where lines come from, where answers go, and what a program reads.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{PROGRAM, errors, last_json, pageferry, scratch, shell, text};

#[test]
fn a_script_goes_on_when_its_reader_is_gone() {
    let s = scratch(64 << 10);
    // The reader takes one line and goes; the fifo makes sure that it has.
    let line = "mkfifo $F.gone; \
        { printf 'pread -v 0 1m\\n'; cat $F.gone; printf 'pread -v 0 64k\\npwrite -S 7 0 4k\\n'; } \
        | $P io $F | { head -1; exec <&-; : > $F.gone; }";
    let output = shell(line, &s.file);
    assert!(output.stderr.is_empty(), "{}", errors(&output));
    // The shell may end before the script does.
    for _ in 0..1000 {
        if std::fs::read(&s.file).unwrap()[..4096] == [7; 4096] {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the script was abandoned");
}

#[test]
fn bytes_lost_at_the_end_are_told_when_nobody_reads_the_rest() {
    let s = scratch(64 << 10);
    let line = "exec 3>&1; { printf 'pread -v 0 64k\\npin -w 0 4k\\ndwrite -S 7 0 4k\\nfail copy-out 99\\n' \
        | $P io $F; echo status $? >&3; } | true";
    let output = shell(line, &s.file);
    assert_eq!(text(&output), "status 1\n");
    assert!(errors(&output).contains("4096 bytes that the device wrote are LOST"));
}

#[test]
fn a_full_standard_output_is_an_error() {
    let s = scratch(100);
    let output = shell("$P io $F -c 'pread 0 1' -c 'pwrite -S 7 0 1' > /dev/full", &s.file);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read(&s.file).unwrap()[0], 7);
    assert_eq!(shell("$P io $F -c nonsense 2> /dev/full", &s.file).status.code(), Some(1));
}

#[test]
fn a_line_that_is_not_utf8_is_a_failed_command() {
    let s = scratch(100);
    for (flags, lines) in [("--json", 3), ("--json -x", 2)] {
        let line = format!("printf 'pread 0 1\\n\\377 1\\npread 0 1\\n' | $P io {flags} $F");
        let output = shell(&line, &s.file);
        assert_eq!(output.status.code(), Some(1));
        let answers: Vec<Value> =
            text(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(answers.len(), lines);
        assert_eq!(answers[1]["ok"], false);
        assert_eq!(answers[1]["error"]["kind"], "usage");
        assert_eq!(answers.last().unwrap()["ok"], flags == "--json");
    }
}

#[test]
fn a_failed_shell_command_keeps_its_output() {
    let s = scratch(100);
    let output = pageferry(&["io", "FILE", "--json", "-c", "!echo seen; exit 3"], &s.file);
    let answer = last_json(&output);
    assert_eq!((&answer["ok"], &answer["output"]), (&false.into(), &"seen".into()));
    assert!(answer["error"]["message"].as_str().unwrap().contains("exit status: 3"));
    let output = pageferry(&["io", "FILE", "-c", "!echo seen; exit 3"], &s.file);
    assert_eq!(text(&output), "seen\n");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn exit_ends_a_script_and_help_is_text_for_programs() {
    let s = scratch(100);
    let args = ["io", "FILE", "--json", "-c", "help", "-c", "exit", "-c", "nonsense"];
    let output = pageferry(&args, &s.file);
    assert!(output.status.success());
    assert!(last_json(&output)["text"].as_str().unwrap().contains("dwrite"));
}

#[test]
fn prompts_are_for_people_only() {
    let s = scratch(100);
    for (command, prompts) in
        [("$P io $F", true), ("$P io $F | cat", false), ("$P io --json $F", false)]
    {
        let child = Command::new("script")
            .args(["-qec", command, "/dev/null"])
            .env("P", PROGRAM)
            .env("F", &s.file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            println!("skipped: there is no script(1) to make a terminal");
            return;
        };
        child.stdin.take().unwrap().write_all(b"pread 0 1\nquit\n").unwrap();
        let output = text(&child.wait_with_output().unwrap());
        assert_eq!(output.contains("pageferry>"), prompts, "{command}: {output}");
    }
}
