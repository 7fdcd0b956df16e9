//! Room to work in: files that nobody has to clear away, memory that is asked for politely.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::fs::{Mode, OFlags};

use crate::size::human;

/// A file that has no name in any directory: however this process ends, nothing is left behind. It is
/// held by a descriptor that has not opened it, which no lease minds.
pub(crate) struct Scratch {
    _place: OwnedFd,
    path: PathBuf,
}

impl Scratch {
    /// A new file with what `fill` writes.
    pub(crate) fn new(
        fill: impl FnOnce(&mut File) -> anyhow::Result<()>,
    ) -> anyhow::Result<Scratch> {
        let dir = std::env::temp_dir();
        let file = tempfile::tempfile();
        let mut file = file.with_context(|| format!("making a file in {}", dir.display()))?;
        fill(&mut file)?;
        let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
        let place = rustix::fs::open(opened, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let place = place.context("finding the file again (is /proc mounted?)")?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()));
        Ok(Scratch { _place: place, path })
    }

    /// Where this process, and it alone, can open the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Memory of so many bytes `fill`, or an error where there is none.
pub(crate) fn memory(bytes: u64, fill: u8) -> anyhow::Result<Vec<u8>> {
    let mut memory = reserved(bytes)?;
    memory.resize(bytes as usize, fill);
    Ok(memory)
}

/// An empty vector with room for so many bytes.
pub(crate) fn reserved(bytes: u64) -> anyhow::Result<Vec<u8>> {
    let mut memory = Vec::new();
    let fits = usize::try_from(bytes).is_ok_and(|n| memory.try_reserve_exact(n).is_ok());
    ensure!(fits, "the system refuses {} of memory: ask for a smaller size", human(bytes));
    Ok(memory)
}

/// Refuses work that cannot fit, before the disk is full or the machine out of memory.
pub(crate) fn ensure_room(disk: u128, memory: u128) -> anyhow::Result<()> {
    let dir = std::env::temp_dir();
    let free =
        rustix::fs::statvfs(&dir).with_context(|| format!("looking at {}", dir.display()))?;
    let free = free.f_bavail.saturating_mul(free.f_frsize);
    let shown = |bytes: u128| human(u64::try_from(bytes).unwrap_or(u64::MAX));
    ensure!(
        disk <= free.into(),
        "this takes {} in {}, where {} are free: ask for a smaller size, or set TMPDIR",
        shown(disk),
        dir.display(),
        human(free)
    );
    if let Some(free) = free_memory() {
        ensure!(
            memory <= free.into(),
            "this takes {} of memory, and {} are available: ask for a smaller size",
            shown(memory),
            human(free)
        );
    }
    Ok(())
}

/// What the kernel thinks can be used without harm; `None` where it does not say.
fn free_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim_start_matches(':').trim_end_matches("kB").trim().parse().ok()
    };
    Some(field("MemAvailable")?.saturating_add(field("SwapFree").unwrap_or(0)).saturating_mul(1024))
}
