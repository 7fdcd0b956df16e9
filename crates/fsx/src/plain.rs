//! What an ordinary program does to a file, by system calls and mappings.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, copy_file_range, fallocate};

use crate::op::Access;
use crate::raw::{Mapping, truncate};
use crate::rng::fill_bytes;

/// A file as one program uses it.
pub(crate) struct PlainFile {
    path: PathBuf,
    /// Where `copy_file_range` copies from.
    source: PathBuf,
    held: Option<File>,
    maps: BTreeMap<u64, Mapping>,
}

impl PlainFile {
    /// `who` keeps its helper file apart from those of others.
    pub(crate) fn new(path: &Path, who: &str) -> PlainFile {
        let mut source = path.as_os_str().to_owned();
        source.push(format!(".{who}-source"));
        PlainFile { path: path.into(), source: source.into(), held: None, maps: BTreeMap::new() }
    }

    fn open(&self) -> io::Result<File> {
        match &self.held {
            Some(file) => file.try_clone(),
            None => OpenOptions::new().read(true).write(true).open(&self.path),
        }
    }

    fn map(&self, slot: u64) -> io::Result<&Mapping> {
        self.maps.get(&slot).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Performs one access. Loads give their bytes, everything else gives none.
    pub(crate) fn perform(&mut self, access: &Access) -> io::Result<Vec<u8>> {
        match *access {
            Access::Read { at, len } => return read_at(&self.open()?, at, len),
            Access::Write { at, len, fill } => {
                self.open()?.write_all_at(&fill_bytes(fill, at, len), at)?;
            }
            Access::Append { len, fill } => self.append(len, fill)?,
            Access::Direct { at, len, fill } => self.write_direct(at, len, fill)?,
            Access::CopyFrom { at, len, fill } => self.copy_from(at, len, fill)?,
            Access::Resize { size } => self.open()?.set_len(size)?,
            Access::Truncate { size } => truncate(&self.path, size)?,
            Access::Empty {} => {
                drop(OpenOptions::new().write(true).truncate(true).open(&self.path)?)
            }
            Access::Punch { at, len } => {
                self.shape(FallocateFlags::PUNCH_HOLE, true, at, len)?;
            }
            Access::Zero { at, len, keep } => {
                self.shape(FallocateFlags::ZERO_RANGE, keep, at, len)?
            }
            Access::Allocate { at, len, keep } => {
                self.shape(FallocateFlags::empty(), keep, at, len)?;
            }
            Access::Collapse { at, len } => {
                self.shape(FallocateFlags::COLLAPSE_RANGE, false, at, len)?;
            }
            Access::Insert { at, len } => {
                self.shape(FallocateFlags::INSERT_RANGE, false, at, len)?
            }
            Access::Sync {} => self.open()?.sync_all()?,
            Access::Hold {} => self.held = Some(self.open()?),
            Access::LetGo {} => self.held = None,
            Access::Map { slot, at, len, writable } => {
                let map = Mapping::new(&self.open()?, at, len, writable)?;
                self.maps.insert(slot, map);
            }
            Access::Unmap { slot } => drop(self.maps.remove(&slot)),
            Access::Load { slot, at, len } => return self.map(slot)?.load(at, len),
            Access::Store { slot, at, len, fill } => {
                self.map(slot)?.store(at, &fill_bytes(fill, at, len))?;
            }
        }
        Ok(Vec::new())
    }

    fn shape(&self, flags: FallocateFlags, keep: bool, at: u64, len: u64) -> io::Result<()> {
        let keep = if keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
        Ok(fallocate(self.open()?, flags | keep, at, len)?)
    }

    fn append(&self, len: u64, fill: u64) -> io::Result<()> {
        let file = OpenOptions::new().append(true).open(&self.path)?;
        let at = file.metadata()?.len();
        io::Write::write_all(&mut &file, &fill_bytes(fill, at, len))
    }

    fn write_direct(&self, at: u64, len: u64, fill: u64) -> io::Result<()> {
        let flags = OFlags::DIRECT.bits().cast_signed();
        let file = OpenOptions::new().write(true).custom_flags(flags).open(&self.path)?;
        // Direct I/O wants aligned memory; a vector does not promise it.
        let mut bytes = vec![0; len as usize + 4096];
        let skip = bytes.as_ptr().align_offset(4096);
        bytes[skip..skip + len as usize].copy_from_slice(&fill_bytes(fill, at, len));
        file.write_all_at(&bytes[skip..skip + len as usize], at)
    }

    fn copy_from(&self, at: u64, len: u64, fill: u64) -> io::Result<()> {
        let source = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&self.source)?;
        // At the same offset, so that file systems that can share blocks do.
        source.write_all_at(&fill_bytes(fill, at, len), at)?;
        let target = self.open()?;
        let (mut from, mut to, mut left) = (at, at, len as usize);
        while left > 0 {
            match copy_file_range(&source, Some(&mut from), &target, Some(&mut to), left)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => left -= n,
            }
        }
        Ok(())
    }
}

impl Drop for PlainFile {
    fn drop(&mut self) {
        // There is none unless something was copied.
        let _ = std::fs::remove_file(&self.source);
    }
}

/// As many bytes as there are, up to `len`.
pub(crate) fn read_at(file: &File, at: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}
