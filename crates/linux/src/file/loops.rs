//! Loop devices: they write to their file without an event of any kind.

use std::io::ErrorKind;
use std::path::Path;

use super::{HostFile, Place};

const BLOCK_DEVICES: &str = "/sys/block";

impl HostFile {
    /// A loop device may stand on this file: one does, or one stands on a file that cannot be found, or
    /// the devices cannot be listed.
    #[must_use]
    pub fn may_be_a_loop(&self) -> bool {
        self.may_be_listed_in(Path::new(BLOCK_DEVICES))
    }

    fn may_be_listed_in(&self, devices: &Path) -> bool {
        let Ok(devices) = std::fs::read_dir(devices) else { return true };
        devices.into_iter().any(|device| {
            let Ok(device) = device else { return true };
            if !device.file_name().as_encoded_bytes().starts_with(b"loop") {
                return false;
            }
            match std::fs::read(device.path().join("loop/backing_file")) {
                Ok(name) => self.may_be_named(name.strip_suffix(b"\n").unwrap_or(&name)),
                // Without a file.
                Err(error) => error.kind() != ErrorKind::NotFound,
            }
        })
    }

    fn may_be_named(&self, name: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(name);
        // A deleted file's name ends in a remark and finds nothing.
        Place::find(Path::new(name)).map_or(true, |place| place.identity() == self.identity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_on_this_file_and_on_others() {
        let dir = tempfile::tempdir().expect("directory");
        let (ours, other) = (dir.path().join("ours"), dir.path().join("other"));
        std::fs::write(&ours, [1]).expect("write");
        std::fs::write(&other, [1]).expect("write");
        let file = HostFile::open(&ours, true).expect("open");
        let devices = dir.path().join("block");
        assert!(file.may_be_listed_in(&devices), "nobody knows");
        std::fs::create_dir_all(devices.join("loop0")).expect("mkdir");
        std::fs::create_dir_all(devices.join("sda/loop")).expect("mkdir");
        std::fs::write(devices.join("sda/loop/backing_file"), "/nowhere\n").expect("write");
        assert!(!file.may_be_listed_in(&devices), "none has a file");
        let stand = |on: &str| {
            std::fs::create_dir_all(devices.join("loop1/loop")).expect("mkdir");
            std::fs::write(devices.join("loop1/loop/backing_file"), on).expect("write");
            file.may_be_listed_in(&devices)
        };
        assert!(!stand(&format!("{}\n", other.display())));
        assert!(stand(&format!("{}\n", ours.display())));
        assert!(stand(&format!("{} (deleted)\n", dir.path().join("gone").display())));
    }
}
