//! The suite's basic cases of outsiders, guards and changes on other file systems, and what a
//! read-only mount allows. Mounting needs root; where it cannot be done, a line says so.

/// Says that a test could not be made here, past the runner's capture: a skip is never silent.
#[macro_export]
macro_rules! skipped {
    ($($why:tt)*) => {{
        use std::io::Write;
        // Nobody to tell is no reason to fail.
        let _ = writeln!(std::io::stderr(), "skipped: {}", format_args!($($why)*));
    }};
}

/// With PAGEFERRY_CONNECTED=1 the cache is a daemon's.
const CONNECTED: bool = false;

#[path = "../suite/calls.rs"]
mod calls;
#[path = "../suite/changes.rs"]
mod changes;
#[path = "../suite/common.rs"]
mod common;
#[path = "../suite/descriptors.rs"]
mod descriptors;
#[path = "../suite/detours.rs"]
mod detours;
#[path = "../suite/guards.rs"]
mod guards;
#[allow(dead_code, reason = "the suite uses all of it")]
#[path = "../suite/mount.rs"]
mod mount;
#[path = "../suite/outsiders.rs"]
mod outsiders;
#[path = "../suite/parts.rs"]
mod parts;
#[path = "../suite/proofs.rs"]
mod proofs;
mod read_only;
#[path = "../suite/stranger.rs"]
mod stranger;
#[path = "../suite/strangers.rs"]
mod strangers;
#[path = "../suite/ways.rs"]
mod ways;

use std::process::Command;

/// In the processes that run the suite's cases on another file system.
const INSIDE: &str = "PAGEFERRY_OTHER_FILE_SYSTEM";

/// All of the suite's cases that are linked in here, with scratch files on a file system of a kind.
fn cases_on(kind: &str) {
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    let mount = match mount::Mount::image_at(kind, 512 << 20, image.path()) {
        Ok(mount) => mount,
        Err(why) => return skipped!("{kind}: {why}"),
    };
    let modules = ["outsiders", "guards", "changes", "parts", "strangers", "detours", "proofs"];
    for module in modules.map(|module| format!("{module}::")) {
        let out = Command::new(std::env::current_exe().unwrap())
            // One after the other: a child that one makes has the descriptors of all until it calls
            // exec, which counts as somebody who has their files open.
            .args([&*module, "--test-threads=1"])
            .env(INSIDE, kind)
            .env("TMPDIR", mount.path())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&out.stdout) + &text(&out.stderr);
        assert!(out.status.success(), "{module} on {kind}:\n{said}");
        for line in said.lines().filter_map(|line| line.strip_prefix("skipped: ")) {
            skipped!("{module} on {kind}: {line}");
        }
        assert!(!said.contains("running 0 tests"), "{module} on {kind}: there are none\n{said}");
    }
}

#[test]
fn cases_on_xfs() {
    cases_on("xfs");
}

#[test]
fn cases_on_btrfs() {
    cases_on("btrfs");
}
