//! The mappings of a window, and accesses of single pages of them.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use pageferry_device::PAGE_BYTES;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::atomic_copy;
use crate::frame_memory::{stamp_offset, tail_bytes};
use crate::stamp::{FrameUse, Stamp, Unread};

/// Of address space that is only reserved.
const RESERVED: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

/// An entry of `/proc/self/pagemap`.
const ENTRY_BYTES: usize = 8;
const ENTRY_FILE: u64 = 1 << 61;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_PRESENT: u64 = 1 << 63;

/// Address space for frames in a row, and for their tails behind.
///
/// # Invariants
/// - In the process that made it, `[reserved, reserved + reserved_bytes)` is mapped and ours; its
///   children have nothing there, or something of their own.
/// - Where a frame is attached, its bytes are mapped at the place of the frame, readable, and writable
///   if `stores`; its tail is mapped, readable, at the place of the tail. They can neither shrink nor
///   grow, so that no access fails.
pub(crate) struct WindowMap {
    reserved: NonNull<u8>,
    reserved_bytes: usize,
    /// From `reserved` to the first frame.
    offset: usize,
    frame_bytes: u64,
    stores: bool,
    /// The use of the frame that is attached at each index; 0 if none is.
    attached: Box<[u64]>,
}

// SAFETY: an address; what is there is accessed by atomics only.
unsafe impl Send for WindowMap {}
// SAFETY: as for `Send`.
unsafe impl Sync for WindowMap {}

impl WindowMap {
    pub(crate) fn new(frames: u64, frame_bytes: u64, stores: bool) -> io::Result<WindowMap> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        // One frame more, to align the first.
        let bytes = frames
            .checked_mul(frame_bytes + tail_bytes(frame_bytes))
            .and_then(|bytes| bytes.checked_add(frame_bytes))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(too_large)?;
        let reserved = std::ptr::null_mut();
        // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces nothing.
        let reserved =
            unsafe { mm::mmap_anonymous(reserved, bytes, ProtFlags::empty(), RESERVED) }?;
        let reserved = NonNull::new(reserved.cast::<u8>()).ok_or_else(too_large)?;
        let start = reserved.addr().get();
        let map = WindowMap {
            reserved,
            reserved_bytes: bytes,
            offset: start.next_multiple_of(frame_bytes as usize) - start,
            frame_bytes,
            stores,
            attached: vec![0; frames as usize].into(),
        };
        map.keep_from_children(reserved.as_ptr(), bytes)?;
        Ok(map)
    }

    /// Where the first frame is.
    pub(crate) fn addr(&self) -> usize {
        self.at(0).addr()
    }

    fn frames(&self) -> u64 {
        self.attached.len() as u64
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.frames() * self.frame_bytes
    }

    pub(crate) fn is_attached(&self, index: u64) -> bool {
        index < self.frames() && self.attached[index as usize] != 0
    }

    /// Whether a frame is attached at an offset of the window.
    pub(crate) fn is_attached_at(&self, at: u64) -> bool {
        self.is_attached(at / self.frame_bytes)
    }

    fn at(&self, at: u64) -> *mut u8 {
        self.reserved.as_ptr().wrapping_add(self.offset + at as usize)
    }

    /// Where the tail of the frame at an index is.
    fn tail(&self, index: u64) -> *mut u8 {
        self.at(self.bytes() + index * tail_bytes(self.frame_bytes))
    }

    /// Maps memory, which has the right size and the right seals, at an index of the window, for as long as it is in
    /// that use, which is not 0.
    pub(crate) fn attach(
        &mut self,
        index: u64,
        memory: BorrowedFd<'_>,
        serial: u64,
    ) -> io::Result<()> {
        let frame = self.place(index);
        let tail = self.tail_place(index);
        self.attached[index as usize] = 0;
        let mapped = if self.stores {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // Without a reserve: most pages are never stored to.
            self.map(frame, access, MapFlags::PRIVATE | MapFlags::NORESERVE, memory, 0)
        } else {
            self.map(frame, ProtFlags::READ, MapFlags::SHARED, memory, 0)
        };
        let mapped = mapped.and_then(|()| {
            self.map(tail, ProtFlags::READ, MapFlags::SHARED, memory, self.frame_bytes)
        });
        match mapped {
            Ok(()) => self.attached[index as usize] = serial,
            Err(_) => self.detach(index),
        }
        mapped
    }

    /// Takes a frame out again.
    pub(crate) fn detach(&mut self, index: u64) {
        self.attached[index as usize] = 0;
        for (at, bytes) in [self.place(index), self.tail_place(index)] {
            let flags = RESERVED | MapFlags::FIXED;
            // SAFETY: inside of our reservation; nobody accesses it, as `self` is borrowed exclusively.
            let done = unsafe { mm::mmap_anonymous(at.cast(), bytes, ProtFlags::empty(), flags) };
            // Refused, the frame stays mapped until the window goes, and is not accessed any more.
            if done.is_ok() {
                let _ = self.keep_from_children(at, bytes);
            }
        }
    }

    fn place(&self, index: u64) -> (*mut u8, usize) {
        (self.at(index * self.frame_bytes), self.frame_bytes as usize)
    }

    fn tail_place(&self, index: u64) -> (*mut u8, usize) {
        (self.tail(index), tail_bytes(self.frame_bytes) as usize)
    }

    fn map(
        &self,
        (at, bytes): (*mut u8, usize),
        access: ProtFlags,
        flags: MapFlags,
        memory: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<()> {
        let flags = flags | MapFlags::FIXED;
        // SAFETY: inside of our reservation (both places are), which this replaces; nobody accesses
        // it, as `attach` borrows exclusively.
        unsafe { mm::mmap(at.cast(), bytes, access, flags, memory, offset) }?;
        self.keep_from_children(at, bytes)
    }

    /// A forked child shall neither see nor keep anything of another process's memory.
    fn keep_from_children(&self, at: *mut u8, bytes: usize) -> io::Result<()> {
        for advice in [Advice::LinuxDontFork, Advice::LinuxDontDump] {
            // SAFETY: inside of our reservation; the advices change no content here.
            unsafe { mm::madvise(at.cast(), bytes, advice) }?;
        }
        Ok(())
    }

    /// The stamp of the page at an offset of the window, where a frame is attached.
    fn stamp(&self, at: u64) -> &Stamp {
        assert!(self.is_attached_at(at), "nothing is attached at {at}");
        let page = at % self.frame_bytes / PAGE_BYTES;
        let stamp = self.tail(at / self.frame_bytes).wrapping_add(stamp_offset(page) as usize);
        // SAFETY: in the mapped tail (checked), aligned; any word is a valid `Stamp`; it stays mapped
        // for as long as `self` is borrowed. Of what is mapped read-only only loads are used.
        unsafe { &*stamp.cast::<Stamp>() }
    }

    /// The use of the frame that is attached at an offset of the window: what it is, and what it was.
    fn frame_use(&self, at: u64) -> (&FrameUse, u64) {
        assert!(self.is_attached_at(at), "nothing is attached at {at}");
        let index = at / self.frame_bytes;
        // SAFETY: the start of the mapped tail (checked), aligned to a page; any word is a valid `FrameUse`; it stays
        // mapped for as long as `self` is borrowed. Only loads are used.
        let now = unsafe { &*self.tail(index).cast::<FrameUse>() };
        (now, self.attached[index as usize])
    }

    /// Copies out bytes of one page of an attached frame, as the device has it.
    pub(crate) fn read_page(&self, at: u64, to: &mut [u8]) -> Result<(), Unread> {
        let (now, serial) = self.frame_use(at);
        self.stamp(at).read_of(now, serial, || self.read(at, to))
    }

    /// Whether the page of an attached frame is present now: for bytes that are not the device's.
    pub(crate) fn is_present(&self, at: u64) -> bool {
        let (now, serial) = self.frame_use(at);
        self.stamp(at).is_present() && now.is(serial)
    }

    fn check(&self, at: u64, len: usize) {
        let one_frame = at / self.frame_bytes == (at + len as u64 - 1) / self.frame_bytes;
        assert!(one_frame && self.is_attached_at(at), "bytes {at}.. are not attached");
    }

    /// Copies out bytes of one attached frame; `to` is not empty. The device may be writing to them:
    /// then what is in `to` is to be thrown away.
    pub(crate) fn read(&self, at: u64, to: &mut [u8]) {
        self.check(at, to.len());
        // SAFETY: mapped (checked), for as long as `self` is borrowed; no access of it fails.
        unsafe { atomic_copy::load(self.at(at), to) };
    }

    /// Copies in bytes of one attached frame; `bytes` is not empty. Only with `stores`. Other code of
    /// this process may be looking at the memory.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        assert!(self.stores, "a window without stores");
        self.check(at, bytes.len());
        // SAFETY: mapped (checked), writable with `stores`, for as long as `self` is borrowed.
        unsafe { atomic_copy::store(bytes, self.at(at)) };
    }

    /// Adds the pages that this process has copies of, as offsets of the window, ascending; `range` is
    /// of whole pages of one attached frame.
    ///
    /// A copy is a page that belongs to no file: bit 61 is clear. Nothing is there, and no bit is set,
    /// where nobody looked yet, and where a page of the file was unmapped or is swapped out.
    pub(crate) fn copies(
        &self,
        pagemap: impl AsFd,
        range: Range<u64>,
        found: &mut Vec<Range<u64>>,
    ) -> io::Result<()> {
        let pages = ((range.end - range.start) / PAGE_BYTES) as usize;
        let mut entries = vec![0; pages * ENTRY_BYTES];
        let start = self.at(range.start).addr() as u64 / PAGE_BYTES * ENTRY_BYTES as u64;
        let mut done = 0;
        while done < entries.len() {
            match rustix::io::pread(&pagemap, &mut entries[done..], start + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        for (entry, page) in entries.as_chunks::<ENTRY_BYTES>().0.iter().zip(0..) {
            let entry = u64::from_ne_bytes(*entry);
            if entry & (ENTRY_PRESENT | ENTRY_SWAPPED) == 0 || entry & ENTRY_FILE != 0 {
                continue;
            }
            let at = range.start + page * PAGE_BYTES;
            match found.last_mut() {
                Some(last) if last.end == at => last.end = at + PAGE_BYTES,
                _ => found.push(at..at + PAGE_BYTES),
            }
        }
        Ok(())
    }

    /// Unmaps everything; not in a forked child, where nothing of it is mapped.
    pub(crate) fn unmap(&mut self) {
        // SAFETY: ours (the invariant: the caller is the process that made it), and nobody accesses
        // it, as `self` is borrowed exclusively; nothing is attached any more.
        let _ = unsafe { mm::munmap(self.reserved.as_ptr().cast(), self.reserved_bytes) };
        self.attached = Box::default();
    }
}
