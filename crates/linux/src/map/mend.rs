//! After a call of the kernel's that exchanges mappings has failed.
//!
//! Such a call unmaps what was there and then maps what shall be there. Whether it fails before,
//! after or in between is not told, and what is in between is a hole: an access to it dies, and
//! worse, any thread's next `mmap` or `malloc` may fill it, and then accesses through the map change
//! that. So after every failure it is looked up, in `/proc/self/maps`, who is there: a hole is
//! closed with the file's pages. **If that fails, or if somebody else is there already, the process
//! aborts**: no error value could keep the threads that know the map's addresses from using them.
//!
//! None of this could be provoked on 6.18, where calls that fail have changed nothing.
//!
//! Anonymous memory that stands where a placeholder should is taken for it: a stranger's would not
//! be recognised.

use std::ops::Range;

use rustix::mm::MapFlags;

use super::{FileMap, MapError, Shape, keep_from_children};
use crate::page::{RangeSet, page_bytes};

/// Who is where a map should be.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// The map, but for holes in these places.
    Ours(Vec<Range<usize>>),
    /// Something else, at this offset.
    Stranger(usize),
    /// `/proc/self/maps` cannot be read.
    Unknown,
}

impl FileMap {
    /// Makes sure that all of `range` is mapped as `shape` has it, or by the file's pages, which
    /// `shape` then says.
    ///
    /// # Errors
    /// A part that came home so would be inherited by children.
    pub(super) fn mend(&self, shape: &mut Shape, range: &Range<usize>) -> Result<(), MapError> {
        // Looked at again before anything is done about it, as other threads change other mappings
        // while one reads.
        let clean = Found::Ours(Vec::new());
        let mut found = self.look(shape, range);
        for _ in 0..2 {
            if found != clean {
                found = self.look(shape, range);
            }
        }
        let holes = match found {
            Found::Ours(holes) => holes,
            Found::Stranger(at) => give_up(self.addresses(&(at..range.end)), "another's"),
            Found::Unknown => self.unmapped_pages(range),
        };
        let mut result = Ok(());
        for hole in holes {
            if self.map_file_at(&hole, MapFlags::FIXED_NOREPLACE).is_err() {
                give_up(self.addresses(&hole), "a hole");
            }
            self.came_home(shape, hole.clone());
            result = result.and(keep_from_children(self.at(hole.start).cast(), hole.len()));
        }
        result
    }

    fn look(&self, shape: &Shape, range: &Range<usize>) -> Found {
        let Ok(text) = std::fs::read_to_string("/proc/self/maps") else { return Found::Unknown };
        let mappings: Vec<Mapping<'_>> = text.lines().filter_map(Mapping::parse).collect();
        // The file as the kernel names it here, which need not be what statx says of it.
        let anchor = self.anchor.addr().get();
        let Some(anchor) = mappings.iter().find(|m| m.range.contains(&anchor)) else {
            return Found::Unknown;
        };
        let addresses = self.addresses(range);
        let base = addresses.start - range.start;
        let mut mapped = RangeSet::default();
        for mapping in &mappings {
            let start = mapping.range.start.max(addresses.start);
            let end = mapping.range.end.min(addresses.end);
            if start >= end {
                continue;
            }
            let part = start - base..end - base;
            for home in shape.away.gaps(part.clone()) {
                let offset = mapping.offset + (base + home.start - mapping.range.start) as u64;
                let expected = self.offset + home.start as u64;
                if mapping.file != anchor.file || offset != expected {
                    return Found::Stranger(home.start);
                }
            }
            if let Some(away) = shape.away.within(part.clone()).first()
                && !mapping.is_anonymous()
            {
                return Found::Stranger(away.start);
            }
            mapped.insert(part);
        }
        Found::Ours(mapped.gaps(range.clone()))
    }

    /// The pages of `range` where nothing is mapped, found without `/proc`.
    fn unmapped_pages(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let page = page_bytes();
        let mut holes = RangeSet::default();
        for at in range.clone().step_by(page) {
            let mut resident = 0_u8;
            // SAFETY: asks about one page, into one byte.
            if unsafe { libc::mincore(self.at(at).cast(), page, &mut resident) } != 0 {
                holes.insert(at..at + page);
            }
        }
        holes.within(range.clone())
    }
}

fn give_up(at: Range<usize>, what: &str) -> ! {
    eprintln!(
        "pageferry: the kernel has left {what} mapping at {:#x}..{:#x}, where a file is mapped; \
         going on would corrupt memory",
        at.start, at.end
    );
    std::process::abort();
}

/// A line of `/proc/self/maps`.
struct Mapping<'a> {
    range: Range<usize>,
    offset: u64,
    /// Device and inode.
    file: (&'a str, &'a str),
}

impl<'a> Mapping<'a> {
    fn parse(line: &'a str) -> Option<Mapping<'a>> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let number = |digits| usize::from_str_radix(digits, 16).ok();
        let range = number(start)?..number(end)?;
        let offset = u64::from_str_radix(words.nth(1)?, 16).ok()?;
        Some(Mapping { range, offset, file: (words.next()?, words.next()?) })
    }

    fn is_anonymous(&self) -> bool {
        self.file.1 == "0"
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges are what is compared")]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use super::*;
    use crate::HostFile;

    fn map() -> FileMap {
        let named = tempfile::tempfile().expect("file");
        let file = HostFile::from_fd(named.as_fd()).expect("open");
        let page = page_bytes();
        let bytes: Vec<u8> = (0..8 * page).map(|at| (at / page) as u8).collect();
        file.write_at(&bytes, 0).expect("fill");
        FileMap::new(&Arc::new(file), page as u64, 6 * page, true).expect("map")
    }

    fn unmap(map: &FileMap, range: &Range<usize>) {
        // SAFETY: nobody uses the map meanwhile.
        assert_eq!(unsafe { libc::munmap(map.at(range.start).cast(), range.len()) }, 0);
    }

    fn place(map: &FileMap, range: &Range<usize>) {
        let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: as above.
        let at = unsafe {
            libc::mmap(map.at(range.start).cast(), range.len(), libc::PROT_READ, how, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
    }

    #[test]
    fn what_is_as_it_should_be_stays() {
        let (map, page) = (map(), page_bytes());
        let mut shape = map.shape.write();
        shape.away.insert(page..2 * page);
        place(&map, &(page..2 * page));
        assert_eq!(map.look(&shape, &(0..6 * page)), Found::Ours(vec![]));
        map.mend(&mut shape, &(0..6 * page)).expect("mend");
        assert_eq!(shape.away.within(0..6 * page), [page..2 * page]);
        assert!(map.unmapped_pages(&(0..6 * page)).is_empty());
    }

    #[test]
    fn holes_are_closed_with_the_files_pages() {
        let (map, page) = (map(), page_bytes());
        let mut shape = map.shape.write();
        shape.away.insert(page..3 * page);
        place(&map, &(page..2 * page));
        unmap(&map, &(2 * page..4 * page));
        assert_eq!(map.look(&shape, &(0..6 * page)), Found::Ours(vec![2 * page..4 * page]));
        assert_eq!(map.unmapped_pages(&(0..6 * page)), [2 * page..4 * page]);
        map.mend(&mut shape, &(0..6 * page)).expect("mend");
        assert_eq!(shape.away.within(0..6 * page), [page..2 * page]);
        drop(shape);
        for n in 2..4 {
            assert_eq!(map.load::<u8>(n * page).expect("load") as usize, n + 1);
        }
    }

    #[test]
    fn a_stranger_is_recognised() {
        let (map, page) = (map(), page_bytes());
        let mut shape = map.shape.write();
        place(&map, &(2 * page..3 * page));
        assert_eq!(map.look(&shape, &(0..6 * page)), Found::Stranger(2 * page));
        // The file's own pages where there should be none.
        shape.away.insert(2 * page..4 * page);
        assert_eq!(map.look(&shape, &(0..6 * page)), Found::Stranger(3 * page));
    }
}
