//! What is on a daemon's device, and who holds it.

use std::path::Path;

use serde_json::Value;

use crate::daemon::{Client, Daemon, Lines};
use crate::{PROGRAM, errors, last_json, text};

#[test]
fn files_are_loaded_stay_and_are_dropped() {
    let daemon = Daemon::start(&[]);
    let (one, two) = (daemon.file("one", 1_000_001), daemon.file("two", 5));
    if !daemon.proves(&one) {
        return;
    }
    let two = two.to_str().unwrap();
    let load = ["load", "CONNECT", "FILE", two, "--json"];
    let output = daemon.run(&load, &one);
    let answer = last_json(&output);
    assert!(output.status.success(), "{answer} {}", errors(&output));
    assert_eq!((&answer["ok"], &answer["bytes"]), (&true.into(), &1_000_006.into()));
    assert_eq!(answer["resident_bytes"], 1_000_006);
    assert_eq!(answer["files"][1]["resident_bytes"], 5);
    let place = || {
        let output = daemon.run(&["where", "CONNECT", "FILE", "0", "2m", "--json"], &one);
        last_json(&output)["ranges"].clone()
    };
    assert_eq!((&place()[0]["state"], &place()[0]["len"]), (&"copy".into(), &1_000_001.into()));
    let stat = last_json(&daemon.run(&["stat", "CONNECT", "FILE", "--json"], &one));
    assert_eq!((&stat["resident_bytes"], &stat["frame_bytes"]), (&1_000_001.into(), &65536.into()));
    let said = text(&daemon.run(&load[..4], &one));
    assert!(said.starts_with("1000006 of 1000006 bytes"), "{said}");

    let mut client = daemon.client(&one);
    client.does("pin 0 4k");
    let drop = ["drop", "CONNECT", "FILE", two, "--json"];
    let answer = last_json(&daemon.run(&drop, &one));
    assert_eq!(answer["files"][1]["resident_bytes"], 0, "{answer}");
    let stays = answer["resident_bytes"].as_u64().unwrap();
    assert!((1..=64 << 10).contains(&stays), "what is pinned stays: {answer}");
    client.does("unpin");
    let said = text(&daemon.run(&drop[..3], &one));
    assert!(said.contains(&format!("dropped {stays} bytes\n")), "{said}");
    assert_eq!(place()[0]["state"], "home");
    assert_eq!(client.count("used_bytes"), 0);
}

#[test]
fn what_does_not_fit_is_told() {
    let daemon = Daemon::start(&[]);
    let file = daemon.file("file", 6 << 20);
    let output = daemon.run(&["load", "CONNECT", "FILE", "--json"], &file);
    let answer = last_json(&output);
    assert_eq!((output.status.code(), &answer["ok"]), (Some(1), &false.into()), "{answer}");
    let resident = answer["resident_bytes"].as_u64().unwrap();
    assert!(resident <= 4 << 20 && answer["bytes"] == 6 << 20, "{answer}");
    let output = daemon.run(&["load", "CONNECT", "FILE"], &file);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains(" of 6291456 bytes"), "{}", text(&output));
    assert!(errors(&output).contains("not all of it"), "{}", errors(&output));
    let output = daemon.run(&["load", "CONNECT", "/nonexistent", "--json"], &file);
    assert_eq!(last_json(&output)["error"]["kind"], "not-found");
}

#[test]
fn loading_takes_what_others_and_limits_leave() {
    let limits = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(limits.path(), "").unwrap();
    let daemon = Daemon::start(&["--limits", limits.path().to_str().unwrap()]);
    let (held, file) = (daemon.file("held", 4 << 20), daemon.file("file", 1 << 20));
    let load = |file| daemon.run(&["load", "CONNECT", "FILE", "--json"], file);
    let told = daemon.run(&["load", "CONNECT", "FILE"], &held);
    assert!(told.status.success(), "{}", errors(&told));
    let mut holder = daemon.client(&held);
    holder.does("pin 0 4m");
    let output = load(&file);
    let answer = last_json(&output);
    assert_eq!((output.status.code(), &answer["resident_bytes"]), (Some(1), &0.into()), "{answer}");
    let told = errors(&daemon.run(&["load", "CONNECT", "FILE"], &file));
    assert!(told.contains("others hold it"), "{told}");
    holder.does("unpin");
    // One frame is left.
    holder.does("pin 0 4032k");
    let output = load(&file);
    let answer = last_json(&output);
    assert_eq!(output.status.code(), Some(1), "{answer}");
    assert!(answer["resident_bytes"].as_u64().unwrap() <= 64 << 10, "{answer}");
    drop(holder);
    std::fs::write(limits.path(), "pinned_bytes = \"64k\"").unwrap();
    daemon.signal(rustix::process::Signal::HUP);
    daemon.expect_log("limits are read again", 1);
    daemon.expect_log("session closed", 5);
    let output = load(&file);
    assert!(output.status.success(), "{} {}", text(&output), errors(&output));
}

fn look(daemon: &Daemon) -> Value {
    let output = daemon.run(&["top", "CONNECT", "--once", "--json"], Path::new(""));
    assert!(output.status.success(), "{}", errors(&output));
    last_json(&output)
}

#[test]
fn top_tells_who_holds_what() {
    let daemon = Daemon::start(&[]);
    let file = daemon.file("file", 1 << 20);
    // A name that would clear the terminal of whoever looks.
    let program = daemon.dir.path().join("evil\x1b[2J");
    std::os::unix::fs::symlink(PROGRAM, &program).unwrap();
    let mut client = Client::start(&program, &daemon.socket, &file);
    client.does("pin 0 64k");
    client.does("pin 128k 4k");
    let seen = look(&daemon);
    let session = &seen["sessions"][0];
    assert_eq!(session["pid"], client.pid(), "{seen}");
    assert_eq!((&session["session"], &session["files"]), (&1.into(), &1.into()));
    assert_eq!((&session["pins"], &session["pinned_bytes"]), (&2.into(), &(68 << 10).into()));
    assert_eq!(session["program"], "evil\u{fffd}[2J");
    assert_eq!(seen["sessions"].as_array().unwrap().len(), 2, "it and who looks");
    assert_eq!(seen["counters"]["fetched_bytes"], 68 << 10);
    assert_eq!(seen["hit_rate"], 0.0);
    if daemon.proves(&file) {
        client.does("pin 0 64k");
        let hits = look(&daemon)["hit_rate"].as_f64().unwrap();
        assert!((hits - 64.0 / 132.0).abs() < 1e-9, "{hits}");
    }
    let output = daemon.run(&["top", "CONNECT", "--once"], &file);
    let said = text(&output);
    assert!(said.contains("evil\u{fffd}[2J") && said.contains("of 4.0 MiB used"), "{said}");
    assert!(!said.contains('\x1b'), "{said:?}");
}

#[test]
fn top_looks_again_until_the_daemon_is_gone() {
    use std::process::{Command, Stdio};

    let mut daemon = Daemon::start(&[]);
    let file = daemon.file("file", 1 << 20);
    let mut client = daemon.client(&file);
    let mut top = Command::new(PROGRAM)
        .args(["top", "--json", "--interval", "0.01", "--connect", daemon.at()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let looks = Lines::of(top.stdout.take().unwrap());
    let next = || -> Value { serde_json::from_str(&looks.next()).unwrap() };
    assert!(next().get("per_second").is_none(), "there is no look before the first");
    client.does("pin 0 64k");
    // What was fetched is in one of the looks that follow.
    while next()["per_second"]["fetched_bytes"].as_f64().unwrap() == 0.0 {}
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().success());
    let last = loop {
        let look = next();
        if look["ok"] == false {
            break look;
        }
    };
    assert_eq!(last["error"]["kind"], "disconnected");
    assert_eq!(crate::daemon::ended(&mut top).code(), Some(1));
}
