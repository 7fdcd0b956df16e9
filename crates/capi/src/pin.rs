//! Pins.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::time::Duration;

use pageferry::{After, DetachedPin, Pin, PinMode, Segment, View, Wait};
use parking_lot::RwLock;

use crate::border::{Failure, Result, buffer, bytes, call, check_flags, end_of, prepare, put};
use crate::file::{FILES, pf_file};
use crate::handles::Table;

/// Pin for loads. Read pins of the same bytes share.
pub const PF_PIN_READ: u32 = 0;
/// Pin for loads and stores. Excludes every other pin of its bytes.
pub const PF_PIN_WRITE: u32 = 1;
/// As PF_PIN_WRITE, without reading first what is there: pages that the pin covers whole start as zeros. What is
/// not stored to keeps the file's bytes.
pub const PF_PIN_OVERWRITE: u32 = 2;

/// Leaves what was stored on the device for now, where that can be kept from others (see pf_pin_release()).
pub const PF_KEEP_AWAY: u32 = 1;

/// The CPU may use the address.
pub const PF_SEGMENT_MAPPED: u64 = 1;
/// The CPU may store there, too.
pub const PF_SEGMENT_WRITABLE: u64 = 2;

/// A range of a file that is held on the device.
pub struct pf_pin {
    _private: [u8; 0],
}

/// A stretch of a pin.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pf_segment {
    /// Where its first byte is: of this process's memory with PF_SEGMENT_MAPPED, else of the device's address space.
    pub address: u64,
    /// The offset of that byte in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// PF_SEGMENT_...
    pub flags: u64,
}

struct PinHandle {
    held: RwLock<Held>,
    mode: PinMode,
    in_memory: bool,
    frame_bytes: u64,
}

enum Held {
    Owned(Owned),
    Detached(DetachedPin),
    /// Between the two; or a panic has come in between.
    Gone,
}

/// A pin that other threads than its owner may use.
struct Owned(Pin);

// SAFETY: a `Pin` is a `DetachedPin`, which any thread may have, and a mark that keeps it at the thread that made it, so
// that Rust's programs do not forget whose it is. For C's, the header says so in words.
unsafe impl Send for Owned {}
// SAFETY: as for `Send`.
unsafe impl Sync for Owned {}

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<DetachedPin>();
};

static PINS: Table<pf_pin, PinHandle> = Table::new("pin");

impl Held {
    fn segments(&self) -> Vec<Segment> {
        match self {
            Held::Owned(pin) => pin.0.segments(),
            Held::Detached(pin) => pin.segments(),
            Held::Gone => Vec::new(),
        }
    }

    fn view(&self) -> Result<View<'_>> {
        match self {
            Held::Owned(pin) => Ok(pin.0.view()?),
            Held::Detached(pin) => Ok(pin.view()?),
            Held::Gone => Err(Failure::invalid("the pin is released")),
        }
    }

    fn release(self, after: After) -> Result<u64> {
        match self {
            Held::Owned(pin) => Ok(pin.0.release_with(after)?),
            Held::Detached(pin) => Ok(pin.release_with(after)?),
            Held::Gone => Err(Failure::invalid("the pin is released")),
        }
    }

    fn detach(&mut self) {
        *self = match std::mem::replace(self, Held::Gone) {
            Held::Owned(pin) => Held::Detached(pin.0.detach()),
            held => held,
        };
    }
}

impl PinHandle {
    /// Maps what is to be used by its address: frames are mapped when they are first accessed.
    fn map(&self, range: &Range<u64>) -> Result {
        let held = self.held.read();
        let view = held.view()?;
        let mut at = range.start;
        while at < range.end {
            view.read(at, &mut [0])?;
            at = (at / self.frame_bytes + 1) * self.frame_bytes;
        }
        Ok(())
    }

    fn segments(&self, range: &Range<u64>) -> Vec<pf_segment> {
        let flags = match (self.in_memory, self.mode) {
            (false, _) => 0,
            (true, PinMode::Read) => PF_SEGMENT_MAPPED,
            (true, _) => PF_SEGMENT_MAPPED | PF_SEGMENT_WRITABLE,
        };
        let inside = |s: Segment| {
            let (start, end) = (s.offset.max(range.start), (s.offset + s.len).min(range.end));
            let address = s.addr.0 + start.saturating_sub(s.offset);
            let length = end.saturating_sub(start);
            (length > 0).then_some(pf_segment { address, offset: start, length, flags })
        };
        self.held.read().segments().into_iter().filter_map(inside).collect()
    }
}

/// Holds a range on the device: when this returns, its bytes are there, at least as new as every change of the file
/// that was complete before the call, and stay there until the release.
///
/// Waits for pins of others that exclude this one: timeout_ms milliseconds, without end if it is -1, not at all if it
/// is 0; in any case until the bytes are copied. The range may reach to the end of the page that holds the end of file.
///
/// The pin belongs to the calling thread: a later wait of this thread, or of one that waits for it, for these bytes is
/// refused with -EDEADLK, since it could never end. Any thread may use and release the pin all the same; if another one
/// is going to release it, pf_pin_detach() says so.
///
/// -EFAULT: past the end of the file; -EINVAL: an empty range, an unknown mode; -EACCES: the file is not open for
/// writing; -EAGAIN: it would wait; -ETIMEDOUT; -EDEADLK; -ENOMEM: everything on the device is pinned, or the range is
/// larger than the cache; -EUSERS: a limit of the daemon; what reading the file fails with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_file_pin(
    file: *const pf_file,
    offset: u64,
    length: u64,
    mode: u32,
    timeout_ms: i64,
    pin: *mut *mut pf_pin,
) -> c_int {
    call(|| {
        // SAFETY: NULL or a place for a handle, as the header asks for.
        unsafe { prepare(pin) }?;
        let file = FILES.get(file)?;
        let mode = match mode {
            PF_PIN_READ => PinMode::Read,
            PF_PIN_WRITE => PinMode::Write,
            PF_PIN_OVERWRITE => PinMode::Overwrite,
            mode => return Err(Failure::invalid(format!("unknown mode {mode}"))),
        };
        let wait = match timeout_ms {
            -1 => Wait::Block,
            0 => Wait::Try,
            ms => match u64::try_from(ms) {
                Ok(ms) => Wait::Timeout(Duration::from_millis(ms)),
                Err(_) => return Err(Failure::invalid(format!("a timeout of {ms} ms"))),
            },
        };
        let held = file.file.pin_wait(offset..end_of(offset, length)?, mode, wait)?;
        let handle = PinHandle {
            held: RwLock::new(Held::Owned(Owned(held))),
            mode,
            in_memory: file.in_memory,
            frame_bytes: file.frame_bytes,
        };
        // SAFETY: as for `prepare`.
        unsafe { put(pin, PINS.add(handle)) };
        Ok(())
    })
}

/// Takes a pin off the thread that it belongs to, for another thread to release. A wait for it is never taken for a
/// deadlock any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_pin_detach(pin: *const pf_pin) -> c_int {
    call(|| {
        PINS.get(pin)?.held.write().detach();
        Ok(())
    })
}

/// Releases a pin; the handle is gone whatever the result, and so is what its addresses pointed to. When it returns,
/// what was stored is in the file (in the page cache). `written` gets the number of bytes, if it is not NULL.
///
/// With PF_KEEP_AWAY it is left on the device, and whoever needs it waits until it is home; where nothing can make
/// others wait, it is written back, and the result is -EBUSY (kind "unguarded"), which is no loss.
///
/// Waits for calls of other threads that use the pin.
///
/// What writing the file fails with: the bytes stay on the device, and a flush tries again. -ESTALE: the file
/// has been cut below bytes that were stored; all before the cut are kept. -ECONNRESET: the daemon is gone, and what
/// was stored under this pin with it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_pin_release(pin: *mut pf_pin, flags: u32, written: *mut u64) -> c_int {
    call(|| {
        check_flags(flags, PF_KEEP_AWAY)?;
        let after = if flags & PF_KEEP_AWAY == 0 { After::WriteBack } else { After::KeepAway };
        let held = {
            let pin = PINS.take(pin)?;
            // A call that has this handle ends first, or finds nothing left.
            std::mem::replace(&mut *pin.held.write(), Held::Gone)
        };
        let bytes = held.release(after)?;
        // SAFETY: NULL or a place for a number, as the header asks for.
        unsafe { put(written, bytes) };
        Ok(())
    })
}

/// Copies bytes of the device, from an offset of the file on, which the pin holds. Always works, wherever the
/// device's memory is.
///
/// -EPERM: the pin does not hold them; -EFAULT: the file has been cut below them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_pin_read(
    pin: *const pf_pin,
    offset: u64,
    buf: *mut c_void,
    length: usize,
) -> c_int {
    call(|| {
        let pin = PINS.get(pin)?;
        // SAFETY: NULL or a buffer for so many bytes, as the header asks for.
        let buf = unsafe { buffer(buf.cast(), length) }?;
        let held = pin.held.read();
        Ok(held.view()?.read(offset, buf)?)
    })
}

/// Copies bytes to the device, as pf_pin_read() does from it. The file has them when the pin is released.
///
/// As pf_pin_read(); -EPERM also for a pin for reading.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_pin_write(
    pin: *const pf_pin,
    offset: u64,
    buf: *const c_void,
    length: usize,
) -> c_int {
    call(|| {
        let pin = PINS.get(pin)?;
        // SAFETY: NULL or so many bytes, as the header asks for.
        let stored = unsafe { bytes(buf.cast(), length) }?;
        let held = pin.held.read();
        Ok(held.view()?.write(offset, stored)?)
    })
}

/// Where a part of a pin is: its stretches, ascending, without gaps. `count` says how many `segments` has room for, and
/// gets how many there are; one is enough unless the range crosses a multiple of 64 GiB or a region of the device. With
/// `segments` NULL, only the number is told.
///
/// PF_SEGMENT_MAPPED: the device's memory is in this process's (a connected cache of a software device). Everything
/// asked for is mapped by this call, a frame at a time: ask for what is going to be used, not for 16 GiB of which one
/// page is. The addresses stay right until the pin is released; after that, whatever is there belongs to somebody
/// else. With PF_SEGMENT_WRITABLE (pins for writing) stores by address are as good as pf_pin_write(): they go to copies
/// of their pages, which the release finds and sends. Two threads that store to the same page at the same time, one
/// by address and one by pf_pin_write(), may lose the former's store. Stores elsewhere are a SIGSEGV.
///
/// If the file is cut under a pin, what is beyond the cut reads as stale or zero bytes; no signal is raised.
/// (pf_pin_read() says -EFAULT.) A child made by fork(2) does not have the memory.
///
/// Without PF_SEGMENT_MAPPED the address is one of the device's, which the CPU cannot follow (a cache of its own):
/// pf_pin_read() and pf_pin_write() are the way there.
///
/// -EPERM: the pin does not hold the range; -ERANGE: there are more stretches than room for them, `count` says how many,
/// and nothing is mapped; -ENOMEM: the process has too many mappings (vm.max_map_count: each frame takes two);
/// -EFAULT: the file has been cut below the range.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_pin_address(
    pin: *const pf_pin,
    offset: u64,
    length: u64,
    segments: *mut pf_segment,
    count: *mut usize,
) -> c_int {
    call(|| {
        let pin = PINS.get(pin)?;
        if count.is_null() {
            return Err(Failure::invalid("the place for the number of segments is NULL"));
        }
        let range = offset..end_of(offset, length)?;
        let found = pin.segments(&range);
        if range.is_empty() || found.iter().map(|s| s.length).sum::<u64>() != length {
            return Err(Failure::outside(format!("the pin does not hold bytes {range:?}")));
        }
        // SAFETY: not NULL, so a number, as the header asks for.
        let room = unsafe { count.read() };
        // SAFETY: as above.
        unsafe { put(count, found.len()) };
        if segments.is_null() {
            return Ok(());
        }
        if room < found.len() {
            return Err(Failure::too_small(format!("{} segments, room for {room}", found.len())));
        }
        if pin.in_memory {
            pin.map(&range)?;
        }
        for (i, segment) in found.into_iter().enumerate() {
            // SAFETY: `i` is below the room that `count` promised.
            unsafe { put(segments.wrapping_add(i), segment) };
        }
        Ok(())
    })
}
