//! The m-commands: accesses through a mapping, by file offset.

use std::ops::Range;

use pageferry::{Error, Map};

use super::command::Reply;
use super::data;
use super::session::{Done, Session, len, moved, read_reply};
use crate::failure::Failure;

impl Session {
    pub(super) fn mread(&self, verbose: bool, range: Option<Range<u64>>) -> Done {
        let (map, range) = self.mapped(range)?;
        let read = |bytes: &mut [u8], at| {
            map.read((at - map.offset()) as usize, bytes).map(|()| bytes.len())
        };
        let (bytes, n) = data::pull(&range, None, verbose, read).map_err(bus_error)?;
        Ok(read_reply("mapping read", range.start, n, bytes))
    }

    pub(super) fn mwrite(&self, byte: u8, range: Option<Range<u64>>) -> Done {
        let (map, range) = self.mapped(range)?;
        let write = |bytes: &[u8], at| map.write((at - map.offset()) as usize, bytes);
        data::push(&range, None, byte, write).map_err(bus_error)?;
        Ok(Reply::line(moved("mapping wrote", &range)).with("bytes", len(&range)))
    }

    pub(super) fn msync(&self, waits: bool, range: Option<Range<u64>>) -> Done {
        let (map, range) = self.mapped(range)?;
        if waits {
            let at = |place| (place - map.offset()) as usize;
            map.sync(at(range.start)..at(range.end))?;
        } else {
            // Once the pages are home, the kernel writes them out in its own time.
            self.file.flush(range)?;
        }
        Ok(Reply::line("synced the mapping"))
    }

    pub(super) fn munmap(&mut self) -> Done {
        self.map.take().ok_or_else(no_mapping)?.unmap()?;
        Ok(Reply::line("unmapped"))
    }

    pub(super) fn mmap(&mut self, read_only: bool, range: Range<u64>) -> Done {
        // As in xfs_io, a new mapping becomes the current one.
        if let Some(old) = self.map.take() {
            old.unmap()?;
        }
        let map = self.file.map(range, !read_only)?;
        let (start, bytes) = (map.offset(), map.len() as u64);
        self.map = Some(map);
        Ok(Reply::line(format!("mapped bytes {start}..{}", start + bytes)).with("bytes", bytes))
    }

    /// The mapping and the range of the file in it: all of it, if none is named.
    fn mapped(&self, range: Option<Range<u64>>) -> Result<(&Map, Range<u64>), Failure> {
        let map = self.map.as_ref().ok_or_else(no_mapping)?;
        let whole = map.offset()..map.offset() + map.len() as u64;
        let range = range.unwrap_or_else(|| whole.clone());
        if range.start < whole.start || range.end > whole.end {
            return Err(Failure::usage(format!(
                "bytes {}..{} are outside of the mapping of {}..{}",
                range.start, range.end, whole.start, whole.end
            )));
        }
        Ok((map, range))
    }
}

/// An access that a program would get SIGBUS for says what may be behind it.
fn bus_error(error: Error) -> Failure {
    match &error {
        Error::Os { errno: libc::EFAULT, .. } => Failure::told(
            &error,
            format!(
                "{error}: probably the file system is full (a hole needs space when it is written) \
                 or its storage failed; a plain access would get SIGBUS"
            ),
        ),
        _ => error.into(),
    }
}

fn no_mapping() -> Failure {
    Failure::usage("nothing is mapped; use mmap OFF LEN first")
}
