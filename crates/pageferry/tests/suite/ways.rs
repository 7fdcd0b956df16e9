//! Ways of changing and of reading a file that the standard library does not go, as the strangers of
//! `stranger.rs` go them. Each works on one page, filled with one number.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::pipe::SpliceFlags;

use crate::calls::{self, Shared};

pub const PAGE: u64 = 4096;

/// A page of one number, where direct I/O takes it.
#[repr(align(4096))]
pub struct Page(pub [u8; 4096]);

impl Page {
    pub fn of(number: u64) -> Page {
        let mut page = Page([0; 4096]);
        page.0.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
        page
    }

    /// The least and the greatest of its numbers.
    pub fn numbers(&self) -> (u64, u64) {
        let words = self.0.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("8")));
        words.fold((u64::MAX, 0), |(least, most), word| (least.min(word), most.max(word)))
    }
}

/// How a stranger changes a page.
pub const WRITES: [&str; 15] = [
    "pwrite",
    "O_DIRECT",
    "io_uring",
    "io_uring-worker",
    "io_uring-registered",
    "aio",
    "splice",
    "vmsplice",
    "sendfile",
    "copy_file_range",
    "FICLONERANGE",
    "store",
    "store-after-sync",
    "process_vm_writev",
    "O_PATH-reopened",
];

/// How a stranger reads one.
pub const READS: [&str; 11] = [
    "pread",
    "O_DIRECT",
    "io_uring",
    "io_uring-worker",
    "aio",
    "splice",
    "sendfile",
    "copy_file_range",
    "FICLONERANGE",
    "load",
    "load-private",
];

/// Past the page cache.
pub fn is_direct(way: &str) -> bool {
    matches!(way, "O_DIRECT" | "aio")
}

/// Nobody can be asked about its accesses once they have begun.
pub fn is_mapped(way: &str) -> bool {
    matches!(way, "store" | "store-after-sync" | "process_vm_writev" | "load" | "load-private")
}

/// The file at a path, as a way needs it.
pub fn open(path: &Path, way: &str, write: bool) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(write);
    if way == "O_PATH-reopened" {
        let place = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
        return options.open(format!("/proc/self/fd/{}", place.as_raw_fd()));
    }
    options.custom_flags(if is_direct(way) { libc::O_DIRECT } else { 0 }).open(path)
}

fn short(moved: usize) -> io::Result<()> {
    if moved == PAGE as usize { Ok(()) } else { Err(io::Error::other(format!("{moved} bytes"))) }
}

/// A file beside it with a page, as the source or the target of what the kernel moves.
fn beside(path: &Path, page: &Page) -> io::Result<File> {
    let file = tempfile::tempfile_in(path.parent().unwrap_or(path))?;
    file.write_all_at(&page.0, 0)?;
    Ok(file)
}

/// Fills the page at `at` with the number.
pub fn write(path: &Path, file: &File, way: &str, at: u64, number: u64) -> io::Result<()> {
    let page = Page::of(number);
    match way {
        "pwrite" | "O_DIRECT" | "O_PATH-reopened" => file.write_all_at(&page.0, at),
        "io_uring" => calls::uring_write(file, &page, at, false),
        "io_uring-worker" => calls::uring_write(file, &page, at, true),
        "io_uring-registered" => calls::uring_write_registered(file, &page, at),
        "aio" => {
            let mut page = page;
            calls::aio(file, &mut page, at, true)
        }
        "splice" | "vmsplice" => {
            let (out, into) = rustix::pipe::pipe()?;
            if way == "splice" {
                short(rustix::io::write(&into, &page.0)?)?;
            } else {
                calls::vmsplice(&into, &page)?;
            }
            let mut to = at;
            let flags = SpliceFlags::empty();
            let mut left = PAGE as usize;
            while left > 0 {
                left -= rustix::pipe::splice(&out, None, file, Some(&mut to), left, flags)?;
            }
            Ok(())
        }
        "sendfile" => {
            let source = beside(path, &page)?;
            // It writes at the target's own position, which nobody else uses.
            rustix::fs::seek(file, rustix::fs::SeekFrom::Start(at))?;
            short(rustix::fs::sendfile(file, &source, Some(&mut 0), PAGE as usize)?)
        }
        "copy_file_range" => {
            let source = beside(path, &page)?;
            let (mut from, mut to, len) = (0, at, PAGE as usize);
            let to = Some(&mut to);
            short(rustix::fs::copy_file_range(&source, Some(&mut from), file, to, len)?)
        }
        "FICLONERANGE" => calls::clone_range(&beside(path, &page)?, 0, file, at, PAGE),
        "store" | "store-after-sync" => {
            let map = Shared::new(file, PAGE * (at / PAGE + 1), true)?;
            if way == "store-after-sync" {
                // The page is dirty, made clean by the kernel, and dirtied anew.
                map.word(at).store(number, std::sync::atomic::Ordering::SeqCst);
                calls::sync_file_range(file, at, PAGE);
            }
            map.fill(at, number);
            Ok(())
        }
        "process_vm_writev" => {
            let map = Shared::new(file, PAGE * (at / PAGE + 1), true)?;
            calls::write_from_a_child(&map, at, &page)
        }
        _ => Err(io::Error::other(format!("no way of writing: {way}"))),
    }
}

/// What stands in the page at `at`.
pub fn read(path: &Path, file: &File, way: &str, at: u64) -> io::Result<Page> {
    let mut page = Page::of(u64::MAX);
    let out = || beside(path, &Page::of(u64::MAX));
    let back = |out: &File, page: &mut Page| out.read_exact_at(&mut page.0, 0);
    match way {
        "pread" | "O_DIRECT" => file.read_exact_at(&mut page.0, at)?,
        "io_uring" => calls::uring_read(file, &mut page, at, false)?,
        "io_uring-worker" => calls::uring_read(file, &mut page, at, true)?,
        "aio" => calls::aio(file, &mut page, at, false)?,
        "splice" => {
            let (out, into) = rustix::pipe::pipe()?;
            let mut from = at;
            let flags = SpliceFlags::empty();
            let len = PAGE as usize;
            short(rustix::pipe::splice(file, Some(&mut from), &into, None, len, flags)?)?;
            short(rustix::io::read(&out, &mut page.0[..])?)?;
        }
        "sendfile" => {
            let out = out()?;
            short(rustix::fs::sendfile(&out, file, Some(&mut { at }), PAGE as usize)?)?;
            back(&out, &mut page)?;
        }
        "copy_file_range" => {
            let out = out()?;
            let (mut from, mut to, len) = (at, 0, PAGE as usize);
            let to = Some(&mut to);
            short(rustix::fs::copy_file_range(file, Some(&mut from), &out, to, len)?)?;
            back(&out, &mut page)?;
        }
        "FICLONERANGE" => {
            let out = out()?;
            calls::clone_range(file, at, &out, 0, PAGE)?;
            back(&out, &mut page)?;
        }
        "load" => page = Shared::new(file, PAGE * (at / PAGE + 1), false)?.page(at),
        "load-private" => page = Shared::private(file, PAGE * (at / PAGE + 1))?.page(at),
        _ => return Err(io::Error::other(format!("no way of reading: {way}"))),
    }
    Ok(page)
}

/// The ways that cannot be gone here say so with one of these.
pub fn is_missing(error: &io::Error) -> bool {
    let missing = [libc::ENOSYS, libc::EPERM, libc::EOPNOTSUPP, libc::ENOTTY, libc::EXDEV];
    error.raw_os_error().is_some_and(|e| missing.contains(&e))
}

/// Changes that move or cut more than a page; the model says what becomes of the bytes.
pub const EDITS: [&str; 8] = [
    "zero_range",
    "punch_hole",
    "collapse_range",
    "insert_range",
    "O_TRUNC-rewrite",
    "O_TRUNC-extend",
    "RWF_APPEND",
    "open_by_handle",
];

pub fn edit(path: &Path, held: Option<&File>, how: &str, number: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags as F;
    let opened;
    let file = match held {
        Some(file) => file,
        None => {
            opened = match how {
                "O_TRUNC-rewrite" | "O_TRUNC-extend" => {
                    let bytes = std::fs::metadata(path)?.len();
                    let file = File::options().write(true).truncate(true).open(path)?;
                    return regrow(&file, bytes, how, number);
                }
                "open_by_handle" => calls::open_by_handle(path)?,
                _ => open(path, how, true)?,
            };
            &opened
        }
    };
    let fallocate = |mode| Ok(rustix::fs::fallocate(file, mode, 4 * PAGE, 2 * PAGE)?);
    match how {
        "zero_range" => fallocate(F::ZERO_RANGE | F::KEEP_SIZE),
        "punch_hole" => fallocate(F::PUNCH_HOLE | F::KEEP_SIZE),
        "collapse_range" => fallocate(F::COLLAPSE_RANGE),
        "insert_range" => fallocate(F::INSERT_RANGE),
        "O_TRUNC-rewrite" | "O_TRUNC-extend" => {
            let bytes = file.metadata()?.len();
            file.set_len(0)?;
            regrow(file, bytes, how, number)
        }
        "RWF_APPEND" => calls::append(file.as_fd(), &Page::of(number)),
        "open_by_handle" => file.write_all_at(&Page::of(number).0, 4 * PAGE),
        _ => Err(io::Error::other(format!("no such edit: {how}"))),
    }
}

/// Makes an empty file as long as it was.
fn regrow(file: &File, bytes: u64, how: &str, number: u64) -> io::Result<()> {
    if how == "O_TRUNC-extend" {
        return file.set_len(bytes);
    }
    (0..bytes / PAGE).try_for_each(|page| file.write_all_at(&Page::of(number).0, page * PAGE))
}

/// What an edit makes of the bytes.
pub fn edited(model: &mut Vec<u8>, how: &str, number: u64) {
    let (from, to) = (4 * PAGE as usize, 6 * PAGE as usize);
    match how {
        "zero_range" | "punch_hole" => model[from..to].fill(0),
        "collapse_range" => drop(model.drain(from..to)),
        "insert_range" => drop(model.splice(from..from, vec![0; to - from])),
        "O_TRUNC-rewrite" => {
            model.chunks_exact_mut(4096).for_each(|p| p.copy_from_slice(&Page::of(number).0));
        }
        "O_TRUNC-extend" => model.fill(0),
        "RWF_APPEND" => model.extend(Page::of(number).0),
        _ => model[from..from + 4096].copy_from_slice(&Page::of(number).0),
    }
}
