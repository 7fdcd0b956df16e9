//! Commands that fail as a whole.

use crate::{errors, last_json, pageferry, scratch, shell, text};

#[test]
fn failures_of_whole_commands_are_objects_too() {
    let s = scratch(100);
    for args in [
        &["run", "sum", "/nonexistent", "--json"][..],
        &["stat", "/nonexistent", "--json"],
        &["where", "/nonexistent", "0", "1", "--json"],
        &["io", "/nonexistent", "--json", "-c", "stats"],
        &["demo", "--file", "/nonexistent", "--json"],
    ] {
        let output = pageferry(args, &s.file);
        let answer = last_json(&output);
        assert_eq!(answer["ok"], false, "{args:?}");
        assert_eq!(answer["error"]["kind"], "not-found", "{args:?}");
        assert_eq!(answer["error"]["errno"], 2, "{args:?}");
        assert!(errors(&output).contains(answer["error"]["message"].as_str().unwrap()));
        assert_eq!(output.status.code(), Some(1));
    }
    let output = pageferry(&["run", "saxpy", "FILE", "--json"], &s.file);
    assert_eq!(last_json(&output)["error"]["kind"], "usage");
}

#[test]
fn stat_needs_no_device_and_swallows_no_error() {
    let s = scratch(8192);
    for line in ["stat $F", "where $F 0 1"] {
        let output = shell(&format!("ulimit -v 50000; $P {line}"), &s.file);
        assert!(output.status.success(), "{}", errors(&output));
    }
    for descriptors in 4..8 {
        let output = shell(&format!("ulimit -n {descriptors}; exec $P stat $F"), &s.file);
        let said = text(&output) + &errors(&output);
        assert!(said.contains("can be written") || said.contains("Too many open files"), "{said}");
    }
}

#[test]
fn the_version_has_the_name_of_the_command() {
    let version = text(&pageferry(&["-V"], &scratch(0).file));
    assert_eq!(version, format!("pageferry {}\n", env!("CARGO_PKG_VERSION")));
}
