//! Ranges held on the device.

use std::marker::PhantomData;
use std::ops::Range;

use pageferry_device::DeviceAddr;
use pageferry_engine::{Outcome, PinKey, Request};

use crate::shared::Tally;
use crate::{After, Error, File, PinMode, Result, View, Wait};

/// A range of a file held on the device.
///
/// Its bytes stay where they are until it is released: they are not evicted, and under a write pin
/// CPU accesses through [`Map`](crate::Map) wait. The thread that made it owns it, which is how
/// waits that could never end are recognised; hence it is not `Send` (see [`detach`](Pin::detach)).
///
/// Dropping it releases it with write-back; an error then only shows in the statistics and the log.
#[must_use = "dropping a pin releases it at once"]
pub struct Pin {
    held: DetachedPin,
    _owned_by_this_thread: PhantomData<*const ()>,
}

/// A pin that belongs to no thread and can be sent to one. A wait for it is never recognised as a
/// deadlock: whoever holds it is assumed to release it.
#[must_use = "dropping a pin releases it at once"]
pub struct DetachedPin {
    file: File,
    key: Option<PinKey>,
    range: Range<u64>,
    mode: PinMode,
}

/// A stretch of a pin in the device's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins on the device.
    pub addr: DeviceAddr,
    /// Its first byte in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Pin {
    pub(crate) fn new(file: File, key: PinKey, range: Range<u64>, mode: PinMode) -> Pin {
        DetachedPin { file, key: Some(key), range, mode }.owned()
    }

    /// The bytes it holds.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.held.range.clone()
    }

    /// What the device may do.
    #[must_use]
    pub fn mode(&self) -> PinMode {
        self.held.mode
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.held.file
    }

    /// Where the bytes are in the device's address space: one segment, unless the range crosses a
    /// border of the device's address regions.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        let pieces = self.held.file.handle.backing.pieces(&self.held.range);
        let segment = |(addr, r): (DeviceAddr, Range<u64>)| Segment {
            addr,
            offset: r.start,
            len: r.end - r.start,
        };
        pieces.into_iter().map(segment).collect()
    }

    /// What kernels use to reach the bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a device without processors that run host closures.
    pub fn view(&self) -> Result<View<'_>> {
        let held = &self.held;
        match held.key {
            Some(key) => View::pinned(held.file.clone(), key, held.range.clone(), held.mode),
            None => Err(Error::InvalidArgument("the pin is released".into())),
        }
    }

    /// Releases with write-back: when this returns, what the device wrote is in the page cache.
    /// Returns the bytes written back.
    ///
    /// # Errors
    /// As [`release_with`](Self::release_with).
    pub fn release(self) -> Result<u64> {
        self.release_with(After::WriteBack)
    }

    /// Releases. The pin is gone whatever the result.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Device`]: what could not be written stays away, and a flush
    /// tries again; [`Error::FileShrunk`] if the file was cut below bytes that the device had
    /// written (everything before the cut is kept).
    pub fn release_with(mut self, after: After) -> Result<u64> {
        self.held.release_with(after)
    }

    /// Takes the pin off this thread, so that it can be sent to another.
    pub fn detach(self) -> DetachedPin {
        self.held.set_owner(None);
        self.held
    }
}

impl DetachedPin {
    fn owned(self) -> Pin {
        Pin { held: self, _owned_by_this_thread: PhantomData }
    }

    /// Makes the calling thread the owner.
    pub fn attach(self) -> Pin {
        self.set_owner(Some(crate::sync::current_tid()));
        self.owned()
    }

    fn set_owner(&self, owner: pageferry_engine::Owner) {
        let shared = &self.file.handle.cache.shared;
        // A forked child's calls are refused later, where they can say so.
        if let (Some(key), Ok(())) = (self.key, shared.not_forked()) {
            shared.core.lock().engine.set_owner(key, owner);
            shared.changed.notify_all();
        }
    }

    fn release_with(&mut self, after: After) -> Result<u64> {
        let Some(key) = self.key.take() else { return Ok(0) };
        self.file.release_key(key, &self.range, after)
    }
}

impl File {
    /// As [`let_go`](Self::let_go), and says where keeping away was refused.
    pub(crate) fn release_key(&self, key: PinKey, range: &Range<u64>, after: After) -> Result<u64> {
        let (written, refused) = self.let_go(key, range, after)?;
        refused.map_or(Ok(written), |why| Err(Error::Unguarded { range: range.clone(), why }))
    }

    /// Ends a pin: how many bytes were written back, and why they were not kept away if they should
    /// have been.
    pub(crate) fn let_go(
        &self,
        key: PinKey,
        range: &Range<u64>,
        after: After,
    ) -> Result<(u64, Option<String>)> {
        let shared = &self.handle.cache.shared;
        shared.not_forked()?;
        if after == After::WriteBack {
            return Ok((self.end_pin(key, range, false)?, None));
        }
        // Whoever opens the file while this lasts waits until it is over, and then for the bytes.
        match shared.guards.keep(self.handle.backing.key, range) {
            Ok(_kept) => Ok((self.end_pin(key, range, true)?, None)),
            Err(why) => Ok((self.end_pin(key, range, false)?, Some(why))),
        }
    }

    fn end_pin(&self, key: PinKey, range: &Range<u64>, keep: bool) -> Result<u64> {
        let shared = &self.handle.cache.shared;
        match shared.request(Request::Release { pin: key, keep }, Wait::Block) {
            Ok(Outcome::Released { lost_bytes, cut, .. }) if lost_bytes > 0 => {
                Err(Error::FileShrunk {
                    range: range.clone(),
                    file_bytes: cut.unwrap_or(0),
                    lost_bytes,
                })
            }
            Ok(Outcome::Released { written_bytes, .. }) => Ok(written_bytes),
            Ok(_) => Ok(0),
            Err(refusal) => Err(shared.explain(refusal, range, Wait::Block)),
        }
    }
}

impl Drop for DetachedPin {
    fn drop(&mut self) {
        let result = self.release_with(After::WriteBack).map(drop);
        if let Err(error) = result.or_else(Error::unless_forked) {
            let shared = &self.file.handle.cache.shared;
            Tally::add(&shared.tally.failed_releases, 1);
            let file = &self.file.handle.backing.name;
            tracing::error!(file, range = ?self.range, %error, "releasing a dropped pin failed");
        }
    }
}
