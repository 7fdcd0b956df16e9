//! The example is a strict C program, and says the same of a cache of its own and of a daemon's.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{daemon, here, installed, run};

fn compiled(dir: &Path) -> PathBuf {
    let (prefix, program) = (installed(), dir.join("attach"));
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1"]);
    // For read(2) and PRIx64 beside -std=c11.
    cc.arg("-D_POSIX_C_SOURCE=200809L").arg("-I").arg(prefix.join("include"));
    cc.arg(here().join("examples/attach.c")).arg("-o").arg(&program);
    cc.arg("-L").arg(prefix.join("lib")).arg("-lpageferry");
    run(cc.arg(format!("-Wl,-rpath,{}", prefix.join("lib").display())));
    program
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    let add = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, add)
}

fn attach(socket: Option<&Path>, how: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    // Several frames, and not whole pages.
    let before: Vec<u8> = (0..300_001u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&path, &before).unwrap();
    let printed = run(Command::new(compiled(dir.path())).arg(&path).args(socket));
    let mut after = before.clone();
    after[..19].copy_from_slice(b"pageferry was here\0");
    assert_eq!(std::fs::read(&path).unwrap(), after);
    let (old, new, version) = (checksum(&before), checksum(&after), env!("CARGO_PKG_VERSION"));
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 7, "{printed}");
    assert_eq!(lines[0], format!("pageferry {version}"));
    assert_eq!(lines[1], format!("the device has {old:016x} (300001 bytes, read {how})"));
    assert_eq!(lines[2], format!("the file has   {old:016x}"));
    assert!(lines[3].ends_with(" bytes went back to the file"), "{printed}");
    assert_eq!(lines[4], format!("the device has {new:016x}"));
    assert_eq!(lines[5], format!("the file has   {new:016x}"));
    assert_eq!(lines[6], "both agree");
}

#[test]
fn with_a_cache_of_its_own() {
    attach(None, "through copies");
}

#[test]
fn with_a_daemons_cache() {
    attach(Some(&daemon().socket), "by address");
}

#[test]
fn the_header_is_good_for_cpp() {
    let mut cc = Command::new("cc");
    cc.args(["-x", "c++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]);
    if Command::new("c++").arg("--version").output().is_err() {
        eprintln!("skipped: no C++ compiler here");
        return;
    }
    run(cc.arg(here().join("include/pageferry.h")));
}
