//! Frames whose memory other processes can map.
//!
//! A frame has one *use* after another, each with a serial number. Memory that was never exported goes
//! on from one use to the next; its bytes of former uses are noted as leftovers, and erased when it is
//! exported. Memory that was exported stays with its file, because a client may keep it for ever: for
//! another file the frame gets other memory.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use pageferry_device::{DeviceError, ExportedFrame, FrameId};
use parking_lot::Mutex;

use crate::SoftDevice;
use crate::arena::Arena;
use crate::frame_memory::FrameMemory;

/// All frames' memory.
pub(crate) struct Exports {
    frames: Box<[Frame]>,
    frame_bytes: u64,
    /// Uses of frames so far.
    uses: AtomicU64,
}

/// # Invariants
/// - `place` is where `current`'s memory is, null if there is none. It changes under the mutex and the
///   exclusive locks of all pages of the frame.
#[derive(Default)]
struct Frame {
    place: AtomicPtr<u8>,
    current: Mutex<Use>,
}

#[derive(Default)]
struct Use {
    memory: Option<FrameMemory>,
    serial: u64,
    /// Somebody was handed `memory`.
    exported: bool,
}

impl Exports {
    pub(crate) fn new(frames: u64, frame_bytes: u64) -> Exports {
        let frames = (0..frames).map(|_| Frame::default()).collect();
        Exports { frames, frame_bytes, uses: AtomicU64::new(0) }
    }

    fn frame(&self, frame: FrameId) -> &Frame {
        &self.frames[frame.0 as usize]
    }

    /// Where a frame's memory is. It stays there while the caller holds the lock of one of its pages,
    /// which is also what makes this the newest place.
    pub(crate) fn place(&self, frame: FrameId) -> Option<NonNull<u8>> {
        NonNull::new(self.frame(frame).place.load(Ordering::Relaxed))
    }

    /// Begins the next use of a frame that is not attached.
    ///
    /// # Errors
    /// [`DeviceError::FrameMemory`]: the frame is without memory until this succeeds.
    pub(crate) fn renew(
        &self,
        arena: &Arena,
        id: FrameId,
        same_file: bool,
    ) -> Result<(), DeviceError> {
        let frame = self.frame(id);
        let mut current = frame.current.lock();
        current.serial = self.uses.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(memory) = current.memory.as_ref().filter(|_| same_file || !current.exported) {
            // The frame is not attached: no page of it is present.
            memory.frame_use().set(current.serial);
            arena.leave(id);
            return Ok(());
        }
        let (fresh, outcome) = match FrameMemory::new(self.frame_bytes) {
            Ok(memory) => {
                memory.frame_use().set(current.serial);
                (Some(memory), Ok(()))
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::ENOMEM);
                let frame_bytes = self.frame_bytes;
                (None, Err(DeviceError::FrameMemory { frame_bytes, errno }))
            }
        };
        current.exported = false;
        let old = arena.exchange(id, || {
            let place = fresh.as_ref().map_or(ptr::null_mut(), |memory| memory.base().as_ptr());
            frame.place.store(place, Ordering::Relaxed);
            std::mem::replace(&mut current.memory, fresh)
        });
        // Whoever used it did so under a page's lock, and all of these were taken since.
        drop(old);
        outcome
    }

    /// Gives all memory back; in a forked child, where none of it is mapped, only its descriptors.
    pub(crate) fn close(&mut self, ours: bool) {
        for frame in &mut self.frames {
            match frame.current.get_mut().memory.take() {
                Some(memory) if !ours => memory.forget(),
                memory => drop(memory),
            }
        }
    }
}

impl SoftDevice {
    fn exports(&self) -> Result<&Exports, DeviceError> {
        self.arena.exports().ok_or(DeviceError::Unsupported { what: "exporting frames" })
    }

    pub(crate) fn export(&self, id: FrameId) -> Result<ExportedFrame, DeviceError> {
        let mut current = self.exports()?.frame(id).current.lock();
        // Under the lock: the frame has no other use before this one is exported.
        let attached = self.space.read().is_attached(id);
        let Use { memory: Some(memory), serial, exported } = &mut *current else {
            let what = "the frame to export has no memory";
            return Err(DeviceError::Invalid { what, frame: Some(id) });
        };
        if !attached {
            let what = "the frame to export is not attached";
            return Err(DeviceError::Invalid { what, frame: Some(id) });
        }
        self.arena.scrub(id)?;
        let opened = memory.open().map_err(|error| DeviceError::Export {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        })?;
        *exported = true;
        Ok(ExportedFrame { serial: *serial, memory: opened })
    }

    /// Begins the next use of a frame that is not attached. Nothing to do unless it is exportable.
    pub(crate) fn renew(&self, id: FrameId, same_file: bool) -> Result<(), DeviceError> {
        if self.space.read().is_attached(id) {
            let what = "the frame to reassign is attached";
            return Err(DeviceError::Invalid { what, frame: Some(id) });
        }
        self.arena.exports().map_or(Ok(()), |exports| exports.renew(&self.arena, id, same_file))
    }
}
