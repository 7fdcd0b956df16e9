//! File systems made for a test. They need root; where they cannot be had, the reason is told.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system, unmounted when dropped.
pub struct Mount {
    dir: PathBuf,
    /// Removed after the file system is unmounted.
    _temp: tempfile::TempDir,
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let out = Command::new(program)
        .args(args)
        .output()
        .map_err(|e| format!("{program} is not to be had: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim()))
}

impl Mount {
    fn with(args: &[&str]) -> Result<Mount, String> {
        // SAFETY: asks for a number.
        if unsafe { libc::geteuid() } != 0 {
            return Err("mounting needs root".into());
        }
        let temp = tempfile::tempdir().map_err(|e| e.to_string())?;
        let dir = temp.path().join("mnt");
        std::fs::create_dir(&dir).map_err(|e| e.to_string())?;
        run("mount", &[args, &[dir.to_str().unwrap_or_default()]].concat())?;
        Ok(Mount { dir, _temp: temp })
    }

    /// A tmpfs of so many bytes.
    pub fn tmpfs(bytes: u64) -> Result<Mount, String> {
        Mount::with(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"])
    }

    /// A file system of the given kind on a sparse image of so many bytes, which is made at `image`.
    pub fn image_at(kind: &str, bytes: u64, image: &Path) -> Result<Mount, String> {
        let path = image.to_str().unwrap_or_default();
        std::fs::File::create(image).and_then(|f| f.set_len(bytes)).map_err(|e| e.to_string())?;
        let quiet: &[&str] = if kind.starts_with("ext") { &["-q", "-m", "0"] } else { &["-q"] };
        run(&format!("mkfs.{kind}"), &[quiet, &[path]].concat())?;
        Mount::with(&["-t", kind, "-o", "loop", path])
    }

    /// An overlay.
    pub fn overlay(options: &str) -> Result<Mount, String> {
        Mount::with(&["-t", "overlay", "-o", options, "none"])
    }

    /// Makes a tmpfs larger.
    pub fn grow(&self, bytes: u64) {
        let dir = self.dir.to_str().unwrap_or_default();
        run("mount", &["-o", &format!("remount,size={bytes}"), dir]).unwrap();
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let dir = self.dir.to_str().unwrap_or_default();
        // Files of a failing test may still be open: detach then.
        if run("umount", &[dir]).is_err()
            && let Err(why) = run("umount", &["-l", dir])
        {
            eprintln!("{why}");
        }
    }
}
