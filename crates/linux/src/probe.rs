//! What this system can do for the cache, found by doing it.
//!
//! Each entry is the outcome of a real attempt, on a nameless file in the directory for temporary files, with
//! the rights that this process has. One is inferred from the kernel's version, for want of an overlay to
//! try it on.

mod files;
mod host;
mod traps;

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};

use crate::file::HostFile;

/// One thing a system can or cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// A short, stable name, such as `userfaultfd`.
    pub name: &'static str,
    /// Whether it is there, in full.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What follows from it for the cache.
    pub consequence: String,
}

/// What an attempt found, or why it failed.
type Finding = Result<String, String>;

/// An attempt and what follows from either outcome.
struct Attempt {
    name: &'static str,
    run: fn() -> Finding,
    then: &'static str,
    otherwise: &'static str,
}

/// Tries everything; takes some ten milliseconds.
#[must_use]
pub fn probe() -> Vec<Capability> {
    [host::ATTEMPTS, traps::ATTEMPTS, files::ATTEMPTS]
        .into_iter()
        .flatten()
        .map(|attempt| {
            let finding = (attempt.run)();
            let ok = finding.is_ok();
            Capability {
                name: attempt.name,
                ok,
                detail: finding.unwrap_or_else(|error| error),
                consequence: if ok { attempt.then } else { attempt.otherwise }.to_owned(),
            }
        })
        .collect()
}

/// A nameless file of `pages` pages of ones, open for reading and writing by us alone.
fn scratch(pages: usize) -> Result<HostFile, String> {
    let dir = std::env::temp_dir();
    let failed = |error: String| format!("no file to try with in {}: {error}", dir.display());
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&dir, flags, Mode::RUSR | Mode::WUSR)
        .or_else(|_| memfd_create("pageferry-probe", MemfdFlags::CLOEXEC))
        .map_err(|e| failed(e.to_string()))?;
    let file = HostFile::from_fd(fd.as_fd()).map_err(|e| failed(e.to_string()))?;
    file.write_at(&vec![1; pages * crate::page_bytes()], 0).map_err(|e| failed(e.to_string()))?;
    Ok(file)
}

/// Fails with a sentence unless it holds.
fn require(holds: bool, sentence: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(sentence.to_owned()) }
}

/// The last system call's error, after what it was for.
fn last_error(call: &str) -> String {
    format!("{call}: {}", io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_complete_and_named_once() {
        let found = probe();
        for capability in &found {
            println!("{capability:?}");
            assert!(!capability.detail.is_empty() && !capability.consequence.is_empty());
            assert_eq!(found.iter().filter(|c| c.name == capability.name).count(), 1);
        }
        let kernel = found.iter().find(|c| c.name == "kernel").expect("kernel");
        assert!(kernel.ok);
    }
}
