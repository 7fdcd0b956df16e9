//! Taking ranges away and bringing them home.
//!
//! **Away.** The placeholder is made elsewhere, kept from children, registered, and only then moved
//! over the range with `mremap`: at each instant the range is either the file or a registered
//! placeholder. Under `mlockall(MCL_FUTURE)` the kernel fills new anonymous memory at once, which
//! would be zeros that never trap; so the placeholder is unlocked and emptied before it is moved.
//!
//! **Home.** `mremap` with an old length of zero makes a second mapping of the same shared pages,
//! at an address of our choice and with all flags of the first, `MADV_DONTFORK` among them: one
//! step from placeholder to finished file mapping, 4-5 µs, without the instant in which `mmap`
//! followed by `madvise` would let a fork hand the range to a child. The source is the map's
//! anchor. Should that fail (it needs a few spare VMAs), `mmap` and `madvise` do it.
//!
//! **Near the limit of VMAs** (6.18, tried at every distance from it): `mremap` to a fixed address
//! asks for six spare VMAs *before* it unmaps what was there, so `ENOMEM` leaves the file mapping
//! in place. An error after the unmapping (no memory for the kernel's own structures) would leave a
//! hole. That cannot be provoked, so it is guarded: after any failure the range is mapped again
//! with `MAP_FIXED_NOREPLACE`, which does nothing if nothing is missing. Coming home, a whole
//! stretch works even at the limit, by `mmap`; a part from the middle of one needs two more VMAs
//! than there were and fails, staying away: bring home the [whole
//! stretch](FileMap::away_around) then.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{
    Advice as Madvise, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous,
    mremap_fixed, munlock, munmap,
};

use super::{FileMap, MapError, keep_from_children, protection};
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
    /// The range then is as it was.
    pub fn trap(&self, uffd: &Arc<Uffd>, range: Range<usize>) -> Result<(), MapError> {
        self.check_pages(&range)?;
        self.check_uffd(uffd)?;
        let placeholder = Placeholder::new(uffd, range.len())?;
        let mut shape = self.shape.write();
        match placeholder.move_to(self.at(range.start).cast()) {
            Ok(()) => {
                shape.away.insert(range.clone());
                shape.loose.remove(range);
                Ok(())
            }
            Err(error) => {
                if self.fill_hole(&range)? {
                    shape.away.remove(range.clone());
                    self.lost_track(&mut shape, range);
                }
                Err(MapError::of("mremap", error))
            }
        }
    }

    /// Brings `range` home and wakes whoever waits in it. The bytes must be in the file before.
    ///
    /// Parts that are home already stay as they are, but the whole range is woken: call it even if
    /// another thread was faster. With store tracking, parts that come home count as stored to
    /// until the next scan.
    ///
    /// # Errors
    /// Parts of the range may then be home, the rest is away, and nobody has been woken.
    /// [`MapError::OutOfVmas`] cannot happen to a [whole stretch](FileMap::away_around).
    pub fn untrap(&self, uffd: &Arc<Uffd>, range: Range<usize>) -> Result<(), MapError> {
        self.check_pages(&range)?;
        self.check_uffd(uffd)?;
        let mut shape = self.shape.write();
        for part in shape.away.within(range.clone()) {
            self.map_home(&part)?;
            shape.away.remove(part.clone());
            self.lost_track(&mut shape, part);
        }
        drop(shape);
        self.wake(uffd, range)
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
    /// not come (see [`signal`](crate::signal)); it strikes every thread that touches the range
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
        self.away_around(at).is_some()
    }

    /// The whole stretch around `at` that is away, if it is.
    ///
    /// Not for the reader, as [`is_away`](FileMap::is_away).
    #[must_use]
    pub fn away_around(&self, at: usize) -> Option<Range<usize>> {
        self.shape.read().away.around(at)
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

    /// Puts the file's pages where a placeholder stands.
    fn map_home(&self, range: &Range<usize>) -> Result<(), MapError> {
        let (to, len) = (self.at(range.start).cast::<c_void>(), range.len());
        let from = self.anchor.as_ptr().wrapping_add(range.start).cast();
        // SAFETY: the destination is a page-aligned part of our own mapping, to which nothing in
        // Rust holds references; replacing a placeholder by the file's pages is what every
        // concurrent access to it waits for. The source is inside the anchor, which is shared, so
        // that a length of zero duplicates it and changes nothing.
        if unsafe { mremap_fixed(from, 0, len, MremapFlags::MAYMOVE, to) }.is_ok() {
            return Ok(());
        }
        self.map_file_at(range, MapFlags::FIXED).map_err(|e| MapError::of("mmap", e))?;
        keep_from_children(to, len)
    }

    /// Repairs the range if a failed move has left nothing mapped there; whether it had to.
    fn fill_hole(&self, range: &Range<usize>) -> Result<bool, MapError> {
        match self.map_file_at(range, MapFlags::FIXED_NOREPLACE) {
            Ok(()) => {
                keep_from_children(self.at(range.start).cast(), range.len())?;
                Ok(true)
            }
            // Something is mapped there: by the invariants, what always was. At the limit of VMAs
            // the kernel may say so before it looks.
            Err(Errno::EXIST | Errno::NOMEM) => Ok(false),
            Err(e) => Err(MapError::of("mmap", e)),
        }
    }

    fn map_file_at(&self, range: &Range<usize>, how: MapFlags) -> Result<(), Errno> {
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

/// Anonymous memory without a page in it, registered for missing faults, not yet in place.
///
/// # Invariants
/// `[start, start + len)` is mapped, ours, and known to nobody else.
struct Placeholder {
    start: *mut c_void,
    len: usize,
}

impl Placeholder {
    fn new(uffd: &Uffd, len: usize) -> Result<Placeholder, MapError> {
        let null = std::ptr::null_mut();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a mapping at an address of the kernel's choice takes the place of no other.
        let start = unsafe { mmap_anonymous(null, len, prot, flags) }
            .map_err(|e| MapError::of("mmap", e))?;
        let placeholder = Placeholder { start, len };
        keep_from_children(start, len)?;
        let addresses = start.addr()..start.addr() + len;
        // SAFETY: the range is anonymous memory of ours that nobody knows.
        unsafe { uffd.register(addresses) }
            .map_err(|e| MapError::of("ioctl(UFFDIO_REGISTER)", e))?;
        // Under mlockall(MCL_FUTURE) there are pages in it already: away with them.
        // SAFETY: unlocking changes no contents.
        unsafe { munlock(start, len) }.map_err(|e| MapError::of("munlock", e))?;
        // SAFETY: the contents, zeros if anything, are of no use to anybody.
        unsafe { madvise(start, len, Madvise::LinuxDontNeed) }
            .map_err(|e| MapError::of("madvise(MADV_DONTNEED)", e))?;
        Ok(placeholder)
    }

    /// Moves it over a range of a map, which must be of the same length.
    fn move_to(self, to: *mut c_void) -> Result<(), Errno> {
        // SAFETY: the source is ours and unknown; the destination is a part of a map, to which
        // nothing in Rust holds references. Accesses to it wait from then on.
        unsafe { mremap_fixed(self.start, self.len, self.len, MremapFlags::MAYMOVE, to) }?;
        // It is part of the map now.
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // SAFETY: by the invariant it is ours alone. Failing leaves it mapped, which is sound.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}
