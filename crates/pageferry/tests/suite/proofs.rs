//! Steps of the argument why a copy may be used again, attacked one by one.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use crate::common::*;
use crate::stranger::Stranger;
use crate::strangers::{filled, keep, prove};
use crate::ways::Page;
use pageferry::{CacheConfig, Coherence, File, Guard};

const PAGES: u64 = 8;
const ALL: std::ops::Range<u64> = 0..PAGES * PAGE;

fn proven_file() -> (Rig, File, Stranger) {
    let rig = rig(16);
    std::fs::write(rig.path("a"), filled(PAGES, 1)).unwrap();
    let file = rig.cache.open(rig.path("a")).unwrap();
    let stranger = Stranger::new(&rig.path("a"));
    (rig, file, stranger)
}

#[track_caller]
fn page_is(file: &File, page: u64, number: u64) {
    same(&device_reads(file, page * PAGE..(page + 1) * PAGE), &Page::of(number).0, "the device");
}

/// What a pin moves.
fn moved(rig: &Rig, file: &File) -> u64 {
    let before = rig.stat("fetched_bytes");
    device_reads(file, ALL);
    rig.stat("fetched_bytes") - before
}

/// While somebody can have the file, no pin trusts an earlier one's copy.
#[track_caller]
fn nothing_is_proven(rig: &Rig, file: &File) {
    for _ in 0..3 {
        assert_eq!(moved(rig, file), PAGES * PAGE);
        let why = match file.coherence().unwrap() {
            Coherence::Unproven(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(why.contains("somebody else"), "{why}");
    }
}

/// No time of the file tells of the change.
#[test]
fn times_set_back_hide_nothing() {
    let (rig, file, mut stranger) = proven_file();
    for number in 2..30 {
        prove(&file);
        let times = std::fs::metadata(rig.path("a")).unwrap().modified().unwrap();
        let nanos = times.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        prove(&file);
        stranger.does("open pwrite");
        stranger.does(&format!("write pwrite 3 {number}"));
        stranger.does(&format!("times {nanos}"));
        if number % 2 == 0 {
            stranger.does("go");
        }
        page_is(&file, 3, number);
        stranger.does("go");
        assert_eq!(std::fs::metadata(rig.path("a")).unwrap().modified().unwrap(), times);
        page_is(&file, 3, number);
    }
}

/// A child has what its parent opened, and uses it when the parent has closed its own.
#[test]
fn an_inherited_descriptor_is_somebody() {
    let (rig, file, mut stranger) = proven_file();
    for _ in 0..5 {
        prove(&file);
        stranger.does("open pwrite");
        let heir = stranger.does("bequeath");
        nothing_is_proven(&rig, &file);
        stranger.does(&format!("heir-writes {heir}"));
        page_is(&file, 1, 7);
        prove(&file);
        assert_eq!(moved(&rig, &file), 0);
        file.write_at(&Page::of(1).0, PAGE).unwrap();
    }
}

/// A descriptor that is in a socket only, and in nobody's table.
#[test]
fn a_descriptor_on_its_way_is_somebody() {
    let (rig, file, mut stranger) = proven_file();
    for number in 2..7 {
        prove(&file);
        stranger.does("open pwrite");
        let socket = stranger.does("post");
        nothing_is_proven(&rig, &file);
        stranger.does(&format!("receive {socket}"));
        stranger.does(&format!("write pwrite 1 {number}"));
        page_is(&file, 1, number);
        nothing_is_proven(&rig, &file);
        stranger.does(&format!("write pwrite 1 {}", number + 100));
        stranger.does("go");
        page_is(&file, 1, number + 100);
    }
}

/// `O_PATH` is nobody: it opens nothing, and what it is opened to is heard of.
#[test]
fn a_place_is_nobody_until_it_is_opened() {
    let (rig, file, mut stranger) = proven_file();
    for number in 2..7 {
        stranger.does("place");
        prove(&file);
        assert_eq!(moved(&rig, &file), 0, "while somebody has its place");
        stranger.does("reopen");
        stranger.does(&format!("write pwrite 1 {number}"));
        page_is(&file, 1, number);
        nothing_is_proven(&rig, &file);
        stranger.does("go");
        page_is(&file, 1, number);
    }
}

/// Such an opener waits as any other for what is away.
#[test]
fn a_place_that_is_opened_waits_for_what_is_away() {
    for guard in [Guard::Lease, Guard::Fanotify] {
        let rig = rig_with(16, CacheConfig::default().flush_age(None).guard(guard));
        std::fs::write(rig.path("a"), filled(PAGES, 1)).unwrap();
        let file = rig.cache.open(rig.path("a")).unwrap();
        let mut stranger = Stranger::new(&rig.path("a"));
        for number in [2, 4] {
            stranger.does("place");
            if let Err(why) = keep(&file, PAGES, number) {
                crate::skipped!("{guard:?}: {why}");
                break;
            }
            stranger.does("reopen");
            assert_eq!(stranger.does("read pread 5"), format!("{number} {number}"));
            stranger.does(&format!("write pwrite 2 {}", number + 1));
            page_is(&file, 2, number + 1);
            page_is(&file, 3, number);
            stranger.does("go");
        }
    }
}

/// Who could only read, and did not matter to a cache that only reads, comes to write after all.
#[test]
fn a_reader_that_becomes_a_writer_is_heard_of() {
    let rig = rig(16);
    std::fs::write(rig.path("a"), filled(PAGES, 1)).unwrap();
    let permit = |mode| {
        std::fs::set_permissions(rig.path("a"), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    permit(0o444);
    let mut stranger = Stranger::new(&rig.path("a"));
    stranger.does("open-to-read pwrite");
    let file = rig.cache.open_read_only(rig.path("a")).unwrap();
    for number in 2..7 {
        prove(&file);
        assert_eq!(moved(&rig, &file), 0, "beside a reader");
        permit(0o644);
        stranger.does("reopen");
        permit(0o444);
        stranger.does(&format!("write pwrite 1 {number}"));
        page_is(&file, 1, number);
        nothing_is_proven(&rig, &file);
        stranger.does(&format!("write pwrite 1 {}", number + 100));
        stranger.does("go");
        page_is(&file, 1, number + 100);
        stranger.does("open-to-read pwrite");
    }
}

/// This test once more, as an ordinary user. `None`: this is that user.
fn as_nobody(name: &str, path: &std::path::Path) -> Option<std::io::Result<std::process::Output>> {
    if std::env::var_os(FOREIGN).is_some() {
        return None;
    }
    let mut command = std::process::Command::new(std::env::current_exe().ok()?);
    command.args([&format!("proofs::{name}"), "--exact", "--nocapture", "--test-threads=1"]);
    Some(command.env(FOREIGN, path).env("TMPDIR", path.parent()?).uid(65534).gid(65534).output())
}

const FOREIGN: &str = "PAGEFERRY_FOREIGN_FILE";

/// Who does not own a file can prove nothing about it, copies anew each time, and is told why.
#[test]
fn a_file_of_another_user_is_never_proven() {
    const NAME: &str = "a_file_of_another_user_is_never_proven";
    if let Some(path) = std::env::var_os(FOREIGN) {
        let rig = rig(16);
        for writable in [true, false] {
            let opened =
                if writable { rig.cache.open(&path) } else { rig.cache.open_read_only(&path) };
            let file = opened.unwrap();
            for number in 2..5 {
                assert_eq!(moved(&rig, &file), PAGES * PAGE, "writable: {writable}");
                let why = match file.coherence().unwrap() {
                    Coherence::Unproven(why) => why,
                    other => panic!("{other:?}"),
                };
                assert!(why.contains("belongs to another user"), "{why}");
                let mut stranger = Stranger::new(path.as_ref());
                stranger.does(&format!("write pwrite 1 {number}"));
                page_is(&file, 1, number);
                if writable {
                    let refused = keep(&file, 1, number).unwrap_err();
                    assert!(refused.contains("belongs to another user"), "{refused}");
                }
            }
            file.close().unwrap();
        }
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return crate::skipped!("only root can make files of two users");
    }
    let dir = tempfile::tempdir().unwrap();
    let permit = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let path = dir.path().join("a");
    std::fs::write(&path, filled(PAGES, 1)).unwrap();
    permit(dir.path(), 0o777);
    permit(&path, 0o666);
    match as_nobody(NAME, &path) {
        Some(Ok(out)) => {
            let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success() && said.contains("1 passed"), "{said}");
        }
        Some(Err(error)) => crate::skipped!("an ordinary user cannot run this binary: {error}"),
        None => {}
    }
}

/// More events than the queue holds: what was lost counts as a change of everything.
#[test]
fn lost_events_hide_nothing() {
    const FILES: u64 = 64;
    let limit = std::fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events");
    let limit: u64 = limit.ok().and_then(|l| l.trim().parse().ok()).unwrap_or(16384);
    if !rustix::process::geteuid().is_root() {
        return crate::skipped!("to an ordinary user all events of others are one for each file");
    }
    if limit > 100_000 {
        return crate::skipped!("the queue of events holds {limit}");
    }
    within(100, move || {
        let (rig, file, mut stranger) = proven_file();
        let names: Vec<_> = (0..FILES).map(|n| rig.path(&format!("other-{n}"))).collect();
        let others: Vec<_> = names
            .iter()
            .map(|name| {
                std::fs::write(name, [1; 100]).unwrap();
                rig.cache.open(name).unwrap()
            })
            .collect();
        for number in 2..4 {
            prove(&file);
            // Events of different threads do not merge.
            for _ in 0..=limit / FILES + 1 {
                let visit = || names.iter().for_each(|name| drop(std::fs::File::open(name)));
                std::thread::scope(|scope| drop(scope.spawn(visit)));
            }
            stranger.does(&format!("write pwrite 3 {number}"));
            page_is(&file, 3, number);
        }
        drop(others);
    });
}
