//! Taking ranges away and bringing them home.
//!
//! **Away.** The [placeholder](super::placeholder) is made elsewhere, kept from children,
//! registered, and only then moved over the range with `mremap`: at each instant the range is either
//! the file or a registered placeholder. Where there is not enough address space for a second range
//! of the length (`RLIMIT_AS`), it goes away in pieces.
//!
//! **Home.** `mremap` with an old length of zero makes a second mapping of the same shared pages,
//! at an address of our choice and with all flags of the first, `MADV_DONTFORK` among them: one
//! step from placeholder to finished file mapping, 4-5 µs, without the instant in which `mmap`
//! followed by `madvise` would let a fork hand the range to a child. The source is the map's
//! anchor. Should that fail (it needs a few spare VMAs), `mmap` and `madvise` do it. As the anchor is
//! never locked, what comes home is not either, whatever `mlockall` said before it went.
//!
//! **Near the limit of VMAs** (6.18, tried at every distance from it): `mremap` to a fixed address
//! asks for six spare VMAs *before* it unmaps what was there, so `ENOMEM` leaves the file mapping
//! in place. An error after the unmapping would leave a hole; see [mending](super::mend). Coming
//! home, a whole stretch works even at the limit, by `mmap`; a part from the middle of one needs two
//! more VMAs than there were and fails, staying away: bring home the whole stretch then. One beyond
//! the limit, where the last call may leave a process, nothing works: a [reserve](crate::room) is
//! given up then, if there is one ([`FileMap::reserve`]).

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MremapFlags, mmap, mremap_fixed, munmap};

use super::placeholder::{NoPlaceholder, Placeholder};
use super::{FileMap, MapError, Shape, keep_from_children, protection};
use crate::page::{RangeSet, page_bytes};
use crate::uffd::Uffd;

impl FileMap {
    /// Takes `range` away: from now on, whoever touches it waits until it is
    /// [untrapped](FileMap::untrap) or woken, and `uffd`'s reader gets a
    /// [`Fault`](crate::Fault). What the range held is in the file (in the page cache), and every
    /// store to it that went through has arrived there: the CPU's, those that system calls make
    /// through the page tables (`read(2)` into the range), and those of
    /// [`copy_in`](FileMap::copy_in).
    ///
    /// What does not stop is a store to a page that the kernel has *pinned* before, which needs no
    /// page table: by a `read(2)` with `O_DIRECT` into the range, for io_uring's registered buffers,
    /// `vmsplice`, another process's `process_vm_writev`, RDMA. No program may have such accesses of
    /// a range under way while it is trapped; nobody can find out here.
    ///
    /// Stores since the last [scan](FileMap::scan_stores) are forgotten: scan first, or read the
    /// file after trapping.
    ///
    /// Waits until the reader has taken the `REMAP` event. A range that is away already gets a
    /// fresh placeholder, which is harmless; threads waiting in the old one go on waiting.
    ///
    /// # Errors
    /// The range then is as it was, except that in what was home stores since the last scan may be
    /// forgotten (it counts as stored to). If it had been taken away in several pieces, for want of
    /// address space, and a piece cannot be brought back, that stays away.
    pub fn trap(&self, uffd: &Arc<Uffd>, range: Range<usize>) -> Result<(), MapError> {
        self.check_pages(&range)?;
        self.check_uffd(uffd)?;
        let mut went = RangeSet::default();
        let (mut at, mut len_max) = (range.start, range.len());
        while at < range.end {
            let part = at..range.end.min(at + len_max);
            let placed = match Placeholder::new(uffd, part.len()) {
                Ok(placeholder) => self.put(placeholder, &part, &mut went),
                // Placeholder and range are both mapped for a moment, which RLIMIT_AS may forbid.
                Err(NoPlaceholder::NoSpace(_)) if part.len() > page_bytes() => {
                    len_max = (part.len() / 2).next_multiple_of(page_bytes());
                    continue;
                }
                Err(why) => Err(why.into()),
            };
            if let Err(error) = placed {
                for part in went.within(range.clone()) {
                    // Should that fail, the first error still is the reason.
                    let _ = self.untrap(uffd, part);
                }
                return Err(error);
            }
            at = part.end;
        }
        Ok(())
    }

    /// Puts a placeholder where it belongs; adds to `went` what was home before.
    fn put(
        &self,
        placeholder: Placeholder,
        part: &Range<usize>,
        went: &mut RangeSet,
    ) -> Result<(), MapError> {
        let mut shape = self.shape.write();
        match placeholder.move_to(self.at(part.start).cast()) {
            Ok(()) => {
                shape.away.gaps(part.clone()).into_iter().for_each(|home| went.insert(home));
                shape.away.insert(part.clone());
                shape.loose.remove(part.clone());
                Ok(())
            }
            Err(error) => {
                self.mend(&mut shape, part)?;
                Err(MapError::of("mremap", error))
            }
        }
    }

    /// Makes sure that a [trap](FileMap::trap) of `range` leaves mappings for the program, and keeps
    /// some in reserve for bringing home what it takes away. A range that touches what is away needs
    /// no more mappings than there are. Cheap, and a refusal as well; to be called before each trap
    /// by those who want that.
    ///
    /// # Errors
    /// [`MapError::OutOfVmas`]: fewer than a 64th of the limit are left.
    pub fn reserve(&self, uffd: &Uffd, range: &Range<usize>) -> Result<(), MapError> {
        let touches = {
            let shape = self.shape.read();
            let before = range.start.checked_sub(1).and_then(|at| shape.away.around(at));
            before.or_else(|| shape.away.around(range.end)).is_some()
                || shape.away.around(range.start).is_some_and(|away| range.end <= away.end)
        };
        if touches {
            return Ok(());
        }
        uffd.room().take().map_err(|max_map_count| MapError::OutOfVmas { max_map_count })
    }

    /// Brings `range` home and wakes whoever waits in it. The bytes must be in the file before.
    ///
    /// Parts that are home already stay as they are, but the whole range is woken: call it even if
    /// another thread was faster. With store tracking, parts that come home count as stored to
    /// until the next scan.
    ///
    /// # Errors
    /// Parts of the range may then be home, and whoever waited there has been woken; the rest is
    /// away. [`MapError::OutOfVmas`] cannot happen to a whole stretch of what is away.
    pub fn untrap(&self, uffd: &Arc<Uffd>, range: Range<usize>) -> Result<(), MapError> {
        self.check_pages(&range)?;
        self.check_uffd(uffd)?;
        let mut shape = self.shape.write();
        let mut result = self.bring_all_home(uffd, &mut shape, &range);
        while matches!(result, Err(MapError::OutOfVmas { .. })) && uffd.room().release() {
            result = self.bring_all_home(uffd, &mut shape, &range);
        }
        let home = shape.away.gaps(range);
        drop(shape);
        home.into_iter().fold(result, |result, part| result.and(self.wake(uffd, part)))
    }

    /// Wakes whoever waits in `range`, to try again. May be called by the reader.
    ///
    /// # Errors
    /// As of any bad range; otherwise never in practice.
    pub fn wake(&self, uffd: &Uffd, range: Range<usize>) -> Result<(), MapError> {
        self.check_pages(&range)?;
        if !uffd.is_ours() {
            return Err(MapError::Forked);
        }
        uffd.wake(self.addresses(&range))
            .map_err(|source| MapError::Os { call: "ioctl(UFFDIO_WAKE)", source })
    }

    /// Makes every access to `range`, which must be away, fail: system calls return `EFAULT`, loads
    /// and stores raise `SIGBUS` (`BUS_ADRERR` here; `BUS_MCEERR_AR` on kernels with memory failure
    /// handling), over and over until the range is [rearmed](FileMap::rearm) or untrapped.
    ///
    /// This is the only way to get a thread out of a system call that waits for a page which will
    /// not come: no signal interrupts it. It strikes every thread that touches the range
    /// meanwhile, so it is for single pages and short times.
    ///
    /// # Errors
    /// `Os` with `ENOENT` if part of the range is not away, with `EINVAL` where the kernel cannot
    /// ([`Uffd::can_poison`]).
    pub fn poison(&self, uffd: &Arc<Uffd>, range: Range<usize>) -> Result<(), MapError> {
        self.check_pages(&range)?;
        self.check_uffd(uffd)?;
        let shape = self.shape.write();
        let os = |source| MapError::Os { call: "ioctl(UFFDIO_POISON)", source };
        if !shape.away.gaps(range.clone()).is_empty() {
            return Err(os(Errno::NOENT.into()));
        }
        // SAFETY: all of the range is placeholders of this map (checked, under the lock that every
        // change takes), registered with `uffd`, the only one this map has; nothing refers to it.
        unsafe { uffd.poison(self.addresses(&range)) }.map_err(os)
    }

    /// Puts a fresh placeholder over a poisoned range, so that the next access waits again.
    ///
    /// # Errors
    /// As [`trap`](FileMap::trap), which it is, for ranges that are away.
    pub fn rearm(&self, uffd: &Arc<Uffd>, range: Range<usize>) -> Result<(), MapError> {
        self.trap(uffd, range)
    }

    /// Whether the byte at `at` is away.
    ///
    /// Not for the reader: it waits for a move in progress.
    #[must_use]
    pub fn is_away(&self, at: usize) -> bool {
        self.shape.read().away.around(at).is_some()
    }

    /// The first byte of a range that is away. Not for the reader, either.
    #[must_use]
    pub fn first_away(&self, range: Range<usize>) -> Option<usize> {
        self.shape.read().away.within(range).first().map(|away| away.start)
    }

    /// The map belongs to the first userfaultfd it was trapped with, whose readers must not call.
    fn check_uffd(&self, uffd: &Arc<Uffd>) -> Result<(), MapError> {
        if !uffd.is_ours() {
            return Err(MapError::Forked);
        }
        if uffd.is_reader() {
            return Err(MapError::CalledByReader);
        }
        if !Arc::ptr_eq(self.uffd.get_or_init(|| Arc::clone(uffd)), uffd) {
            return Err(MapError::OtherUffd);
        }
        Ok(())
    }

    fn bring_all_home(
        &self,
        uffd: &Uffd,
        shape: &mut Shape,
        range: &Range<usize>,
    ) -> Result<(), MapError> {
        shape.away.within(range.clone()).into_iter().try_for_each(|part| {
            self.bring_home(shape, part)?;
            uffd.room().came_home();
            Ok(())
        })
    }

    /// Puts the file's pages where placeholders stand.
    ///
    /// # Errors
    /// What `shape` says is true all the same.
    fn bring_home(&self, shape: &mut Shape, part: Range<usize>) -> Result<(), MapError> {
        let (to, len) = (self.at(part.start).cast::<c_void>(), part.len());
        let from = self.anchor.as_ptr().wrapping_add(part.start).cast();
        // SAFETY: the destination is a page-aligned part of our own mapping, to which nothing in
        // Rust holds references; replacing a placeholder by the file's pages is what every
        // concurrent access to it waits for. The source is inside the anchor, which is shared, so
        // that a length of zero duplicates it and changes nothing.
        if unsafe { mremap_fixed(from, 0, len, MremapFlags::MAYMOVE, to) }.is_ok() {
            self.came_home(shape, part);
            return Ok(());
        }
        self.mend(shape, &part)?;
        for rest in shape.away.within(part) {
            match self.map_file_at(&rest, MapFlags::FIXED) {
                Ok(()) => {
                    let (at, len) = (self.at(rest.start).cast(), rest.len());
                    self.came_home(shape, rest);
                    keep_from_children(at, len)?;
                }
                Err(error) => {
                    self.mend(shape, &rest)?;
                    if !shape.away.within(rest).is_empty() {
                        return Err(MapError::of("mmap", error));
                    }
                }
            }
        }
        Ok(())
    }

    /// Notes that the file's pages are mapped there.
    pub(super) fn came_home(&self, shape: &mut Shape, part: Range<usize>) {
        shape.away.remove(part.clone());
        self.lost_track(shape, part);
    }

    pub(super) fn map_file_at(&self, range: &Range<usize>, how: MapFlags) -> Result<(), Errno> {
        let to = self.at(range.start).cast();
        let offset = self.offset + range.start as u64;
        let prot = protection(self.writable);
        // SAFETY: the destination is a part of our own mapping, to which nothing in Rust holds
        // references; `FIXED` replaces at most that part, `FIXED_NOREPLACE` nothing.
        let at =
            unsafe { mmap(to, range.len(), prot, MapFlags::SHARED | how, &self.file, offset) }?;
        if at == to {
            return Ok(());
        }
        // Kernels before 4.17 take FIXED_NOREPLACE for a hint and map elsewhere.
        // SAFETY: this mapping was made just now, elsewhere, and nobody knows it.
        let _ = unsafe { munmap(at, range.len()) };
        Err(Errno::EXIST)
    }
}
