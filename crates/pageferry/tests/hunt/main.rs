//! Stale-hunting: other processes change a file by every path there is and publish, out of band, the
//! number of each change once it is complete; pins must never show less than what was published
//! before they were asked for. And the other way round: whoever opens the file must never see less
//! than what the device had released before.
//!
//! `PAGEFERRY_HUNT_PINS=n` or `PAGEFERRY_HUNT_SECONDS=n` make each case longer than its 3 seconds.

/// Says that a test could not be made here, past the runner's capture: a skip is never silent.
macro_rules! skipped {
    ($($why:tt)*) => { crate::tell(&format!("skipped: {}", format_args!($($why)*))) };
}

/// With PAGEFERRY_CONNECTED=1 the cache is a daemon's.
const CONNECTED: bool = false;

mod board;
#[path = "../suite/common.rs"]
mod common;
mod hunter;
mod layout;
mod memory;
#[allow(dead_code, reason = "the suite uses all of it")]
#[path = "../suite/mount.rs"]
mod mount;
mod onlooker;
mod own;
mod writer;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pageferry::{After, CacheConfig, Error, Guard, PinMode};

use crate::hunter::Case;

/// Tells a process of ours what it is.
const ROLE: &str = "PAGEFERRY_HUNT_ROLE";
/// Marks the run as an ordinary user.
const NOBODY: &str = "PAGEFERRY_HUNT_NOBODY";

fn tell(line: &str) {
    use std::io::Write;
    // Nobody to tell is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// This binary once more, running one of its tests.
fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).stdout(Stdio::null());
    command
}

/// Not a test: where writers and onlookers start.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.splitn(5, ' ').collect();
    let [kind, number, seed, board, path] = words[..] else { panic!("a role of five words") };
    memory::die_with_parent();
    let board = board::Board::open(Path::new(board)).unwrap();
    let (number, seed) = (number.parse().unwrap(), seed.parse().unwrap());
    match kind {
        "writer" => writer::run(&board, PathBuf::from(path), number, seed),
        _ => onlooker::run(&board, Path::new(path), seed),
    }
}

/// Hunts as ourselves and, where we are root, once more as an ordinary user.
fn hunt(test: &str, dir: &Path, case: &Case) {
    if !dir.is_dir() {
        return skipped!("{} is not there", dir.display());
    }
    case.run(dir);
    if std::env::var_os(NOBODY).is_some() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skipped!("only root can hunt as somebody else, too");
    }
    let child = again(test).env(NOBODY, "1").uid(65534).gid(65534).status();
    match child {
        Ok(status) => assert!(status.success(), "as an ordinary user: {status}"),
        Err(error) => skipped!("an ordinary user cannot run this binary: {error}"),
    }
}

fn temp() -> PathBuf {
    std::env::temp_dir()
}

const READER: Case = Case { writable: false, guard: Guard::None };
const WRITER: Case = Case { writable: true, guard: Guard::None };
const KEEPER: Case = Case { writable: true, guard: Guard::Lease };
const GATED: Case = Case { writable: true, guard: Guard::Fanotify };

#[test]
fn read_only() {
    hunt("read_only", &temp(), &READER);
}

#[test]
fn read_only_in_memory() {
    hunt("read_only_in_memory", Path::new("/dev/shm"), &READER);
}

#[test]
fn read_write() {
    hunt("read_write", &temp(), &WRITER);
}

#[test]
fn read_write_in_memory() {
    hunt("read_write_in_memory", Path::new("/dev/shm"), &WRITER);
}

#[test]
fn keeping_away() {
    hunt("keeping_away", &temp(), &KEEPER);
}

#[test]
fn keeping_away_in_memory() {
    hunt("keeping_away_in_memory", Path::new("/dev/shm"), &KEEPER);
}

/// Others wait at each access instead of at their opens. Only root can have them wait so, and an
/// ordinary user has nothing to hunt here.
#[test]
fn keeping_away_behind_a_gate() {
    match guarded_by_a_gate(&temp()) {
        Ok(()) => GATED.run(&temp()),
        Err(why) => skipped!("{}: {why}", temp().display()),
    }
}

/// Keeps a byte away, to learn whether fanotify can guard it there.
fn guarded_by_a_gate(dir: &Path) -> Result<(), String> {
    let scratch = tempfile::tempdir_in(dir).map_err(|e| e.to_string())?;
    let path = scratch.path().join("tried");
    std::fs::write(&path, [0; 4096]).map_err(|e| e.to_string())?;
    let rig = common::rig_with(1, CacheConfig::default().flush_age(None).guard(Guard::Fanotify));
    let file = rig.cache.open(&path).map_err(|e| e.to_string())?;
    let mut tries = 0;
    loop {
        let pin = file.pin(0..1, PinMode::Write).map_err(|e| e.to_string())?;
        pin.view().and_then(|view| view.write(0, &[1])).map_err(|e| e.to_string())?;
        match pin.release_with(After::KeepAway) {
            Ok(_) => return Ok(()),
            // A child that another test forks has all descriptors until it calls exec.
            Err(Error::Unguarded { why, .. }) if why.contains("somebody else") && tries < 100 => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// On file systems made for it.
#[test]
fn on_images() {
    if std::env::var_os(NOBODY).is_some() {
        return;
    }
    for kind in ["xfs", "btrfs"] {
        let image = tempfile::NamedTempFile::new().unwrap();
        let mount = match mount::Mount::image_at(kind, 512 << 20, image.path()) {
            Ok(mount) => mount,
            Err(why) => {
                skipped!("{kind}: {why}");
                continue;
            }
        };
        let all = std::fs::Permissions::from_mode(0o1777);
        std::fs::set_permissions(mount.path(), all).unwrap();
        for case in [&READER, &WRITER, &KEEPER, &GATED] {
            if case.guard == Guard::Fanotify
                && let Err(why) = guarded_by_a_gate(mount.path())
            {
                skipped!("{kind}: {why}");
                continue;
            }
            case.run(mount.path());
        }
    }
}
