//! Loop devices: they write to their file without an event of any kind.

use std::io::ErrorKind;
use std::path::Path;

const BLOCK_DEVICES: &str = "/sys/block";

/// The number of the newest event among loop devices: that one was put on a file, or taken off it, raises
/// it (`diskseq`, Linux 5.14). `None`: nobody knows. It does not wait for any file.
#[must_use]
pub fn newest_loop() -> Option<u64> {
    newest_in(Path::new(BLOCK_DEVICES))
}

fn newest_in(devices: &Path) -> Option<u64> {
    let mut newest = 0;
    for device in std::fs::read_dir(devices).ok()? {
        let device = device.ok()?;
        if !device.file_name().as_encoded_bytes().starts_with(b"loop") {
            continue;
        }
        match std::fs::read_to_string(device.path().join("diskseq")) {
            Ok(number) => newest = newest.max(number.trim().parse().ok()?),
            // It has just gone, which raises no other's number.
            Err(error) if error.kind() == ErrorKind::NotFound && !device.path().exists() => {}
            Err(_) => return None,
        }
    }
    Some(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_all() {
        let dir = tempfile::tempdir().expect("directory");
        let devices = dir.path().join("block");
        assert_eq!(newest_in(&devices), None, "nobody knows");
        let device = |name: &str, number: &str| {
            std::fs::create_dir_all(devices.join(name)).expect("mkdir");
            std::fs::write(devices.join(name).join("diskseq"), number).expect("write");
            newest_in(&devices)
        };
        assert_eq!(device("sda", "99\n"), Some(0));
        assert_eq!(device("loop0", "7\n"), Some(7));
        assert_eq!(device("loop1", "12\n"), Some(12));
        assert_eq!(device("loop2", "many\n"), None);
        std::fs::remove_file(devices.join("loop2/diskseq")).expect("unlink");
        assert_eq!(newest_in(&devices), None, "an older kernel");
    }
}
