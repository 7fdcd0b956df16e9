//! One copy for several processes, and what comes of it when one of them dies.

use std::path::Path;

use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::{last_json, pattern, shell};

const BYTES: u64 = 1 << 20;

/// The first bytes of a file, as answers have them.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn file_is(path: &Path, expected: &[u8]) {
    assert!(std::fs::read(path).unwrap() == expected, "the file has other bytes");
}

#[test]
fn the_second_client_is_served_from_the_copy_of_the_first() {
    let daemon = Daemon::start(&[]);
    let file = daemon.file("file", BYTES);
    if !daemon.proves(&file) {
        return;
    }
    let read = ["io", "CONNECT", "FILE", "--json", "-c", "where 0 1m", "-c", "pin 0 1m"];
    let read = [&read[..], &["-c", "dsum 0 1m", "-c", "stats"]].concat();
    let answers = |output: std::process::Output| -> Vec<serde_json::Value> {
        assert!(output.status.success(), "{}", crate::errors(&output));
        crate::text(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let first = answers(daemon.run(&read, &file));
    let second = answers(daemon.run(&read, &file));
    assert_eq!(first[0]["ranges"][0]["state"], "home");
    assert_eq!(second[0]["ranges"][0]["state"], "copy");
    assert_eq!(second[0]["ranges"][0]["len"], BYTES);
    assert_eq!(first[2]["sha256"], second[2]["sha256"]);
    assert_eq!(first[3]["counters"]["fetched_bytes"], BYTES);
    assert_eq!(second[3]["counters"]["fetched_bytes"], BYTES, "it was copied again");
    let sum = daemon.run(&["run", "sum", "CONNECT", "FILE", "--json"], &file);
    assert_eq!(last_json(&sum)["counters"]["fetched_bytes"], BYTES, "it was copied again");
    let own = crate::pageferry(&["run", "sum", "FILE", "--json"], &file);
    assert_eq!(last_json(&sum)["result"], last_json(&own)["result"]);
}

#[test]
fn stores_of_a_client_that_is_killed_before_its_release_never_were() {
    let daemon = Daemon::start(&[]);
    let file = daemon.file("file", BYTES);
    let mut other = daemon.client(&file);
    let mut killed = daemon.client(&file);
    killed.does("pin -w 0 64k");
    killed.does("dwrite -S 7 0 4k");
    assert_eq!(other.fails("pin -t 0 0 64k"), "would-block");
    other.begin("pin 0 64k");
    killed.kill();
    let pinned = other.answer();
    assert_eq!(pinned["ok"], true, "{pinned}");
    assert_eq!(other.does("dread -v 0 16")["data"], hex(&pattern(16)));
    other.does("unpin");
    daemon.expect_log("session closed", 1);
    file_is(&file, &pattern(BYTES));
}

#[test]
fn what_was_released_survives_a_killed_daemon_and_a_new_one_serves() {
    let mut daemon = Daemon::start(&[]);
    let file = daemon.file("file", BYTES);
    let mut client = daemon.client(&file);
    client.does("pin -w 0 64k");
    client.does("dwrite -S 7 0 4k");
    client.does("unpin");
    client.does("pin -w 0 64k");
    client.does("dwrite -S 8 0 8k");
    daemon.signal(Signal::KILL);
    daemon.ended();
    assert_eq!(client.fails("unpin"), "disconnected");
    assert_eq!(client.fails("pread 0 4k"), "disconnected");
    assert_eq!(client.fails("pin 0 4k"), "disconnected");
    let mut model = pattern(BYTES);
    model[..4096].fill(7);
    file_is(&file, &model);

    // Its socket is still there.
    assert!(daemon.socket.exists());
    let dir = std::mem::replace(&mut daemon.dir, tempfile::tempdir().unwrap());
    let daemon = Daemon::start_in(dir, &[]);
    let mut client = daemon.client(&file);
    assert_eq!(client.count("resident_bytes"), 0);
    client.does("pin -w 0 64k");
    assert_eq!(client.does("dread -v 0 2")["data"], "0707");
    client.does("dwrite -S 9 0 8k");
    client.does("unpin");
    model[..8192].fill(9);
    file_is(&file, &model);
}

#[test]
fn every_client_sees_what_another_program_changed() {
    let daemon = Daemon::start(&[]);
    let file = daemon.file("file", BYTES);
    let mut clients = [daemon.client(&file), daemon.client(&file)];
    for (round, byte) in ["a", "b", "c"].into_iter().enumerate() {
        for client in &mut clients {
            client.does("pin 0 1m");
            client.does("unpin");
        }
        let at = 5000 * (round + 1);
        let line = format!("printf {byte} | dd of=$F bs=1 seek={at} conv=notrunc status=none");
        assert!(shell(&line, &file).status.success());
        for client in &mut clients {
            client.does("pin 0 1m");
            assert_eq!(client.does(&format!("dread -v {at} 1"))["data"], hex(byte.as_bytes()));
            client.does("unpin");
        }
    }
}

#[test]
fn a_client_sees_what_another_client_released() {
    let daemon = Daemon::start(&[]);
    let file = daemon.file("file", BYTES);
    let (mut one, mut other) = (daemon.client(&file), daemon.client(&file));
    other.does("pin 0 1m");
    other.does("unpin");
    one.does("pin -w 64k 64k");
    one.does("dwrite -S 5 70000 2");
    one.does("unpin");
    other.does("pin 0 1m");
    let mut model = pattern(BYTES);
    model[70000..70002].fill(5);
    assert_eq!(other.does("dread -v 69998 6")["data"], hex(&model[69998..70004]));
    file_is(&file, &model);
}
