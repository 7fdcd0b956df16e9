//! git, which maps its packs and replaces them by renaming.

use std::path::Path;
use std::process::Command;

use crate::common::pattern;
use crate::{beside_us, installed, rounds, run};

fn git(dir: &Path, args: &[&str]) -> Vec<u8> {
    let mut command = Command::new("git");
    command.current_dir(dir).args(args);
    for who in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{who}_NAME"), "somebody")
            .env(format!("GIT_{who}_EMAIL"), "somebody@localhost")
            .env(format!("GIT_{who}_DATE"), "2024-01-01T00:00:00Z");
    }
    // Whatever this machine or an outer repository says.
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for outer in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(outer);
    }
    run(&mut command)
}

/// Commits, repacks, collects garbage.
fn repack(dir: &Path) -> Vec<u8> {
    git(dir, &["init", "-q", "-b", "main"]);
    git(dir, &["config", "gc.auto", "0"]);
    git(dir, &["config", "maintenance.auto", "false"]);
    for round in 0..8 * rounds() as usize {
        for n in 0..12 {
            let mut bytes = pattern(5000 * (n as u64 + 1));
            let at = round * 997 % bytes.len();
            bytes[at..].iter_mut().step_by(100 + n).for_each(|byte| *byte ^= round as u8);
            std::fs::write(dir.join(format!("file-{n}")), bytes).unwrap();
        }
        git(dir, &["add", "-A"]);
        git(dir, &["commit", "-q", "-m", &format!("round {round}")]);
        match round % 4 {
            1 => drop(git(dir, &["repack", "-q", "-d"])),
            2 => drop(git(dir, &["repack", "-q", "-a", "-d", "-f"])),
            3 => drop(git(dir, &["gc", "-q", "--prune=now"])),
            _ => {}
        }
    }
    git(dir, &["fsck", "--full", "--strict"]);
    let mut out = git(dir, &["log", "-p", "--binary"]);
    out.extend(git(dir, &["status", "--porcelain"]));
    out
}

#[test]
fn git_repacks() {
    if installed("git") {
        beside_us("git", repack);
    }
}
