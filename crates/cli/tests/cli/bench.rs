//! The bench of guards and its other process. No time is judged.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::{PROGRAM, errors, finished, scratch, shell, text};

const TINY: [&str; 6] = ["bench", "guards", "--size=2m", "--rounds", "1", "--json"];

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{} {}", text(output), errors(output));
    text(output).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Runs it with files in `dir`; every guard has a figure, or a reason why not.
fn guards(command: &mut Command, dir: &Path) -> Vec<Value> {
    let rows = lines(&finished(command.args(TINY).env("TMPDIR", dir)));
    for guard in ["none", "lease", "fanotify", "auto"] {
        let name = format!("guards, {guard}, repin");
        assert!(rows.iter().any(|r| r["figure"] == *name), "{name}: {rows:?}");
    }
    for row in &rows {
        assert!(row["ratio"].is_number() || row["absent"].is_string(), "{row}");
    }
    rows
}

/// The bytes counted at a figure, if it could be had.
fn bytes(rows: &[Value], figure: &str) -> Option<u64> {
    let row = rows.iter().find(|r| r["figure"] == *figure)?;
    Some(row["bytes"]["count"].as_u64().unwrap())
}

fn why_not(rows: &[Value], figure: &str) -> Option<String> {
    let row = rows.iter().find(|r| r["figure"] == *figure)?;
    Some(row["absent"].as_str()?.to_owned())
}

#[test]
fn another_process_pays_for_guards() {
    let dir = tempfile::tempdir().unwrap();
    let rows = guards(&mut Command::new(PROGRAM), dir.path());
    assert_eq!(bytes(&rows, "guards, none, copies, open"), Some(0));
    assert!(bytes(&rows, "guards, none, copies, write") >= Some(4096));
    assert!(why_not(&rows, "guards, none, away").unwrap().contains("refused"));
    let home = |guard: &str, what| bytes(&rows, &format!("guards, {guard}, {what}"));
    if let Some(why) = why_not(&rows, "guards, lease") {
        println!("skipped: {why}");
    } else {
        assert_eq!(home("lease", "4.0 KiB away, open"), Some(4096));
        assert_eq!(home("lease", "2.0 MiB away, visit"), Some(2 << 20));
    }
    if let Some(why) = why_not(&rows, "guards, fanotify") {
        println!("skipped: {why}");
    } else {
        assert_eq!(home("fanotify", "4.0 KiB away, read"), Some(4096));
        assert_eq!(home("fanotify", "4.0 KiB away, write"), Some(4096));
        assert_eq!(home("fanotify", "2.0 MiB away, visit"), Some(4096), "what is asked for");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn guards_that_cannot_be_had_are_named() {
    if Path::new("/dev/shm").is_dir() {
        let rows = guards(&mut Command::new(PROGRAM), Path::new("/dev/shm"));
        assert!(why_not(&rows, "guards, fanotify").unwrap().contains("fanotify cannot guard"));
    } else {
        println!("skipped: no /dev/shm");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", PROGRAM]);
    let can = Command::new("setpriv").args(nobody.get_args()).arg("--version").output();
    if !can.is_ok_and(|o| o.status.success()) {
        println!("skipped: the program cannot be run as nobody");
        return;
    }
    let rows = guards(&mut nobody, dir.path());
    assert!(why_not(&rows, "guards, fanotify").unwrap().contains("fanotify cannot guard"));
}

#[test]
fn a_killed_bench_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let left = || std::fs::read_dir(dir.path()).unwrap().count();
    let mut child = Command::new(PROGRAM)
        .args(["bench", "guards", "--size", "64m", "--rounds", "1000"])
        .env("TMPDIR", dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while left() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Its other process has yet to notice.
    let mut waited = 0;
    while left() > 0 {
        waited += 1;
        assert!(waited < 10_000, "the other process does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_other_process_says_what_went_wrong() {
    let s = scratch(8192);
    std::fs::write(&s.file, [7; 8192]).unwrap();
    let orders = "read 2 4096 7 $F\\nread 1 0 8 $F\\nopen 1 0 0 $F.no\\nwrite 3 4096 9 $F\\neat\\n";
    let answers = lines(&shell(&format!("printf \"{orders}\" | $P outsider"), &s.file));
    assert!(!Path::new(answers[0]["directory"].as_str().unwrap()).exists());
    assert!(answers[1]["nanoseconds"].is_u64() && answers[4]["nanoseconds"].is_u64());
    let said = |n: usize| answers[n]["error"]["message"].as_str().unwrap();
    assert!(said(2).contains("read of") && said(2).contains("where 8 was"), "{}", said(2));
    assert_eq!(answers[3]["error"]["errno"], 2);
    assert!(said(5).contains("does not understand 'eat'"));
    assert!(std::fs::read(&s.file).unwrap()[4096..] == [9; 4096]);
}
