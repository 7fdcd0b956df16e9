//! Strangers that come to the file by way of something else in the kernel that has it open for them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::common::*;
use crate::mount::Mount;
use crate::strangers::{PAGES, away_bytes_are_the_files, changes_are_seen, filled, guarded, keep};
use crate::ways;
use pageferry::Guard;

/// A file that is the upper one of an overlay, changed and read through that.
fn through_an_overlay(work: impl FnOnce(&Path, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path.display().to_string()
    };
    let (lower, upper, workdir) = (make("lower"), make("upper"), make("work"));
    let path = Path::new(&upper).join("a");
    std::fs::write(&path, filled(PAGES, 1)).unwrap();
    match Mount::overlay(&format!("lowerdir={lower},upperdir={upper},workdir={workdir}")) {
        Ok(overlay) => work(&path, &overlay.path().join("a")),
        Err(why) => crate::skipped!("{why}"),
    }
}

#[test]
fn who_comes_through_an_overlay_is_a_stranger() {
    within(100, || {
        through_an_overlay(|path, by| {
            changes_are_seen(path, by);
            away_bytes_are_the_files(path, by, |guard, way| {
                guard == Guard::Lease || !is_unasked(way)
            });
        });
    });
}

#[test]
fn who_maps_a_gated_file_through_an_overlay_sees_what_the_device_wrote() {
    within(100, || {
        through_an_overlay(|path, by| away_bytes_are_the_files(path, by, |_, way| is_unasked(way)));
    });
}

/// The overlay goes these ways to the file beneath it without anybody's being asked.
fn is_unasked(way: &str) -> bool {
    ways::is_mapped(way) || matches!(way, "splice" | "vmsplice" | "sendfile")
}

fn losetup(args: &[&OsStr]) -> Result<String, String> {
    let out = std::process::Command::new("losetup").args(args).output();
    let out = out.map_err(|e| format!("losetup: {e}"))?;
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
    }
}

/// Leaves no loop device over a file, even if the one that made it says that it has failed.
struct Detached(PathBuf);

impl Drop for Detached {
    fn drop(&mut self) {
        let list = ["-n", "-O", "NAME", "-j"].map(OsStr::new);
        let devices = losetup(&[&list[..], &[self.0.as_os_str()]].concat());
        for device in devices.unwrap_or_default().lines() {
            if let Err(why) = losetup(&["-d".as_ref(), device.trim().as_ref()]) {
                eprintln!("{why}");
            }
        }
    }
}

/// A loop device over the file: its reads are the file's.
fn through_a_loop_device(guard: Guard) {
    within(60, move || {
        let rig = guarded(guard);
        std::fs::write(rig.path("a"), filled(PAGES, 1)).unwrap();
        let f = rig.cache.open(rig.path("a")).unwrap();
        if let Err(why) = keep(&f, PAGES, 2) {
            return crate::skipped!("{why}");
        }
        let _detached = Detached(rig.path("a"));
        let device = match losetup(&["-f".as_ref(), "--show".as_ref(), rig.path("a").as_ref()]) {
            Ok(device) => device,
            Err(why) => return crate::skipped!("{why}"),
        };
        same(&std::fs::read(device).unwrap(), &filled(PAGES, 2), "the loop device");
    });
}

#[test]
fn a_loop_device_over_a_leased_file_shows_what_the_device_wrote() {
    through_a_loop_device(Guard::Lease);
}

/// Nobody is asked about what a loop device does: where one stands, nothing is kept away.
#[test]
fn nothing_is_kept_away_under_a_loop_device() {
    within(60, || {
        let rig = guarded(Guard::Fanotify);
        std::fs::write(rig.path("a"), filled(PAGES, 1)).unwrap();
        let f = rig.cache.open(rig.path("a")).unwrap();
        if let Err(why) = keep(&f, PAGES, 2) {
            return crate::skipped!("{why}");
        }
        f.flush(0..PAGE).unwrap();
        let _detached = Detached(rig.path("a"));
        let device = match losetup(&["-f".as_ref(), "--show".as_ref(), rig.path("a").as_ref()]) {
            Ok(device) => device,
            Err(why) => return crate::skipped!("{why}"),
        };
        let refused = keep(&f, PAGES, 3).unwrap_err();
        assert!(refused.contains("loop device"), "{refused}");
        assert_eq!(rig.on_disk("a"), filled(PAGES, 3), "written back instead");
        drop(device);
    });
}
