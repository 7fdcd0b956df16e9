//! A file on a read-only mount can be pinned for reading; writing is refused in words.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use pageferry::{After, Error, Guard, PinMode};

use crate::common::*;
use crate::mount::Mount;

fn remount(options: &str, at: &Path) -> Result<(), String> {
    let out = Command::new("mount").args(["-o", options]).arg(at).output();
    let out = out.map_err(|e| format!("mount is not to be had: {e}"))?;
    let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    if out.status.success() { Ok(()) } else { Err(format!("mount -o {options}: {said}")) }
}

/// A second, read-only place of a directory; ended with it.
struct Place(tempfile::TempDir);

impl Place {
    fn new(of: &Path) -> Result<Place, String> {
        let place = Place(tempfile::tempdir().map_err(|e| e.to_string())?);
        let out = Command::new("mount").arg("--bind").arg(of).arg(place.0.path()).output();
        match out {
            Ok(out) if out.status.success() => {}
            _ => return Err("a bind mount cannot be made here".into()),
        }
        remount("remount,bind,ro", place.0.path())?;
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Files of a failing test may still be open.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Reading works and is proven; every way to write is refused before anything happens.
fn ensure_read_only(path: &Path, expected: &[u8]) {
    let r = rig_with(8, pageferry::CacheConfig::default().flush_age(None).guard(Guard::Auto));
    let refused = r.cache.open(path).map(drop).unwrap_err();
    assert!(matches!(refused, Error::Os { errno: libc::EROFS, .. }), "{refused:?}");
    let file = r.cache.open_read_only(path).unwrap();
    let bytes = expected.len() as u64;
    same(&device_reads(&file, 0..bytes), expected, "the device");
    let fetched = r.stat("fetched_bytes");
    same(&device_reads(&file, 0..bytes), expected, "the device again");
    assert_eq!(r.stat("fetched_bytes"), fetched, "a second pin reuses the copy");
    let read_only = |result: Result<(), Error>| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::ReadOnly(_)), "{error:?}");
    };
    read_only(file.pin(0..100, PinMode::Write).map(drop));
    read_only(file.pin(0..100, PinMode::Overwrite).map(drop));
    read_only(file.write_at(&[1], 0));
    read_only(file.set_len(0));
    read_only(file.punch_hole(0..PAGE));
    read_only(file.map(0..PAGE, true).map(drop));
    read_only(file.view(true).map(drop));
    let map = file.map(0..PAGE, false).unwrap();
    assert_eq!(map.load_u8(7).unwrap(), expected[7]);
    let pin = file.pin(0..100, PinMode::Read).unwrap();
    assert_eq!(pin.release_with(After::KeepAway).unwrap(), 0);
}

#[test]
fn an_image_mounted_read_only() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let image = tempfile::NamedTempFile::new().unwrap();
        let mount = match Mount::image_at(kind, 512 << 20, image.path()) {
            Ok(mount) => mount,
            Err(why) => {
                crate::skipped!("{kind}: {why}");
                continue;
            }
        };
        let bytes = pattern(20 * PAGE + 100);
        let path = mount.path().join("f");
        std::fs::write(&path, &bytes).unwrap();
        if let Err(why) = remount("remount,ro", mount.path()) {
            crate::skipped!("{kind}: {why}");
            continue;
        }
        ensure_read_only(&path, &bytes);
    }
}

/// Others write to the file where it is writable: that is seen where it is not.
#[test]
fn a_read_only_place_of_a_writable_directory() {
    let dir = tempfile::tempdir().unwrap();
    let place = match Place::new(dir.path()) {
        Ok(place) => place,
        Err(why) => return crate::skipped!("{why}"),
    };
    let bytes = pattern(20 * PAGE);
    std::fs::write(dir.path().join("f"), &bytes).unwrap();
    let path = place.0.path().join("f");
    ensure_read_only(&path, &bytes);
    let r = rig(8);
    let file = r.cache.open_read_only(&path).unwrap();
    for round in 1..20_u8 {
        let page = u64::from(round);
        device_reads(&file, 0..20 * PAGE);
        let writer = std::fs::OpenOptions::new().write(true).open(dir.path().join("f")).unwrap();
        writer.write_all_at(&[round; 4096], page * PAGE).unwrap();
        drop(writer);
        assert_eq!(device_reads(&file, page * PAGE..(page + 1) * PAGE), [round; 4096]);
    }
}
