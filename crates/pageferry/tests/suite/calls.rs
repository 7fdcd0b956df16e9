//! System calls of strangers for which there is no safe wrapper.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::mm::{MapFlags, ProtFlags};

use crate::ways::{PAGE, Page};

/// The result of a call that gives -1 and sets `errno`.
fn checked(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn whole(moved: i64) -> io::Result<()> {
    if moved == PAGE as i64 { Ok(()) } else { Err(io::Error::other(format!("moved {moved}"))) }
}

/// A mapping of a file from its start.
pub struct Shared {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: all access is through atomics.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub fn new(file: &File, bytes: u64, writable: bool) -> io::Result<Shared> {
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        Shared::map(file, bytes, prot, MapFlags::SHARED)
    }

    pub fn private(file: &File, bytes: u64) -> io::Result<Shared> {
        Shared::map(file, bytes, ProtFlags::READ, MapFlags::PRIVATE)
    }

    fn map(file: &File, bytes: u64, prot: ProtFlags, flags: MapFlags) -> io::Result<Shared> {
        let bytes = bytes as usize;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, prot, flags, file, 0) }?;
        Ok(Shared { base: base.cast(), bytes })
    }

    /// Whoever stores to it has mapped it for that; it lies before the file's end.
    pub fn word(&self, at: u64) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at as usize + 8 <= self.bytes, "outside of the mapping");
        let word = self.base.wrapping_add(at as usize).cast();
        // SAFETY: inside the mapping, which lives as long as the reference, and aligned; every process
        // accesses it as an atomic or through the kernel.
        unsafe { AtomicU64::from_ptr(word) }
    }

    pub fn fill(&self, at: u64, number: u64) {
        (0..PAGE).step_by(8).for_each(|o| self.word(at + o).store(number, SeqCst));
    }

    pub fn page(&self, at: u64) -> Page {
        let mut page = Page::of(0);
        for (offset, word) in (0..PAGE).step_by(8).zip(page.0.chunks_exact_mut(8)) {
            word.copy_from_slice(&self.word(at + offset).load(SeqCst).to_ne_bytes());
        }
        page
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nobody refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.bytes) };
    }
}

/// Submits one operation and waits for its end.
fn submit(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    // SAFETY: what the entry points to outlives the wait for its completion below.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    let done = loop {
        match ring.submit_and_wait(1) {
            // The operation goes on.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => drop(result?),
        }
        if let Some(done) = ring.completion().next() {
            break done;
        }
    };
    match done.result() {
        error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
        moved => whole(moved.into()),
    }
}

/// By a worker of the ring instead of the calling thread.
fn flags(worker: bool) -> squeue::Flags {
    if worker { squeue::Flags::ASYNC } else { squeue::Flags::empty() }
}

pub fn uring_write(file: &File, page: &Page, at: u64, worker: bool) -> io::Result<()> {
    let write = opcode::Write::new(types::Fd(file.as_raw_fd()), page.0.as_ptr(), PAGE as u32);
    submit(&mut IoUring::new(2)?, &write.offset(at).build().flags(flags(worker)))
}

pub fn uring_read(file: &File, page: &mut Page, at: u64, worker: bool) -> io::Result<()> {
    let read = opcode::Read::new(types::Fd(file.as_raw_fd()), page.0.as_mut_ptr(), PAGE as u32);
    submit(&mut IoUring::new(2)?, &read.offset(at).build().flags(flags(worker)))
}

/// Through a file and a buffer that the ring has, with no descriptor of it.
pub fn uring_write_registered(file: &File, page: &Page, at: u64) -> io::Result<()> {
    let mut ring = IoUring::new(2)?;
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    let buffer =
        libc::iovec { iov_base: page.0.as_ptr().cast_mut().cast(), iov_len: PAGE as usize };
    // SAFETY: the page outlives the ring, and is only read from.
    unsafe { ring.submitter().register_buffers(&[buffer]) }?;
    let write = opcode::WriteFixed::new(types::Fixed(0), page.0.as_ptr(), PAGE as u32, 0);
    submit(&mut ring, &write.offset(at).build())
}

/// `struct iocb` of the kernel, little-endian.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Default)]
struct IoEvent {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}

/// Linux AIO.
pub fn aio(file: &File, page: &mut Page, at: u64, write: bool) -> io::Result<()> {
    let mut context = 0_u64;
    // SAFETY: the kernel writes a number to the pointer.
    checked(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) })?;
    let mut block = Iocb {
        opcode: if write { 1 } else { 0 },
        fd: file.as_raw_fd().cast_unsigned(),
        buffer: page.0.as_mut_ptr() as u64,
        bytes: PAGE,
        offset: at as i64,
        ..Iocb::default()
    };
    let mut blocks = [&raw mut block];
    // SAFETY: the block and the page outlive the wait for the end of the operation below.
    let submitted = unsafe { libc::syscall(libc::SYS_io_submit, context, 1, blocks.as_mut_ptr()) };
    let result = checked(submitted).and_then(|_| {
        let mut event = IoEvent::default();
        let none = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: the kernel writes one event to the pointer.
        let got =
            unsafe { libc::syscall(libc::SYS_io_getevents, context, 1, 1, &raw mut event, none) };
        checked(got)?;
        match event.result {
            error @ ..0 => Err(io::Error::from_raw_os_error(-error as i32)),
            moved => whole(moved),
        }
    });
    // SAFETY: ends what was made above.
    unsafe { libc::syscall(libc::SYS_io_destroy, context) };
    result
}

/// Lends the page to the pipe.
pub fn vmsplice(into: impl AsFd, page: &Page) -> io::Result<()> {
    let fd = into.as_fd().as_raw_fd();
    let part = libc::iovec { iov_base: page.0.as_ptr().cast_mut().cast(), iov_len: PAGE as usize };
    // SAFETY: the page is not changed before the caller has taken it out of the pipe again.
    whole(checked(unsafe { libc::vmsplice(fd, &part, 1, 0) } as i64)?)
}

/// `struct file_clone_range`.
#[repr(C)]
struct CloneRange {
    source: i64,
    from: u64,
    bytes: u64,
    to: u64,
}

pub fn clone_range(source: &File, from: u64, target: &File, to: u64, bytes: u64) -> io::Result<()> {
    const FICLONERANGE: libc::Ioctl = 0x4020_940D;
    let range = CloneRange { source: source.as_raw_fd().into(), from, bytes, to };
    // SAFETY: the kernel reads the struct.
    checked(unsafe { libc::ioctl(target.as_raw_fd(), FICLONERANGE, &raw const range) }.into())?;
    Ok(())
}

/// Starts and awaits the writing of a range.
pub fn sync_file_range(file: &File, at: u64, bytes: u64) {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: plain numbers; file systems that cannot do it say so, which is no matter here.
    unsafe { libc::sync_file_range(file.as_raw_fd(), at as i64, bytes as i64, flags) };
}

/// A child of this process writes into this process's mapping.
pub fn write_from_a_child(map: &Shared, at: u64, page: &Page) -> io::Result<()> {
    let target = std::process::id().cast_signed();
    let len = PAGE as usize;
    let local = libc::iovec { iov_base: page.0.as_ptr().cast_mut().cast(), iov_len: len };
    let remote =
        libc::iovec { iov_base: std::ptr::from_ref(map.word(at)).cast_mut().cast(), ..local };
    // SAFETY: the child makes two system calls and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the kernel checks the other process's memory; ours is a page of this child.
        let wrote = unsafe { libc::process_vm_writev(target, &local, 1, &remote, 1, 0) };
        let error = io::Error::last_os_error().raw_os_error().unwrap_or(255);
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(if wrote == len as isize { 0 } else { error }) };
    }
    checked(child.into())?;
    let mut status = 0;
    // SAFETY: waits for the child just made.
    checked(unsafe { libc::waitpid(child, &mut status, 0) }.into())?;
    match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Appends by the flag of one call.
pub fn append(file: BorrowedFd<'_>, page: &Page) -> io::Result<()> {
    let part = libc::iovec { iov_base: page.0.as_ptr().cast_mut().cast(), iov_len: PAGE as usize };
    // SAFETY: the kernel reads the page.
    let wrote = unsafe { libc::pwritev2(file.as_raw_fd(), &part, 1, 0, libc::RWF_APPEND) };
    whole(checked(wrote as i64)?)
}

/// The file by its handle, with no name of it at the open.
pub fn open_by_handle(path: &Path) -> io::Result<File> {
    #[repr(C)]
    struct Handle {
        len: u32,
        kind: i32,
        bytes: [u8; 128],
    }
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mount = File::open(path.parent().unwrap_or(path))?;
    let mut handle = Handle { len: 128, kind: 0, bytes: [0; 128] };
    let mut id = 0;
    let (at, to) = (name.as_ptr(), &raw mut handle);
    // SAFETY: the handle says how much room it has; the name is a string.
    let named = unsafe {
        libc::syscall(libc::SYS_name_to_handle_at, libc::AT_FDCWD, at, to, &raw mut id, 0)
    };
    checked(named)?;
    let (fd, how) = (mount.as_raw_fd(), libc::O_RDWR | libc::O_CLOEXEC);
    // SAFETY: the handle was filled above.
    let opened = unsafe { libc::syscall(libc::SYS_open_by_handle_at, fd, to, how) };
    // SAFETY: opened just now, and known to nobody else.
    Ok(unsafe { File::from_raw_fd(checked(opened)? as i32) })
}
