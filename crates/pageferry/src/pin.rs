//! Ranges held on the device.

use std::marker::PhantomData;
use std::ops::Range;

use pageferry_device::DeviceAddr;
use pageferry_engine::PinKey;

use crate::service::Released;
use crate::{After, Error, File, PinMode, Result, View};

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
        self.held.range()
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
        self.held.segments()
    }

    /// What kernels use to reach the bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a device without processors that run host closures.
    pub fn view(&self) -> Result<View<'_>> {
        self.held.view()
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
        self.held.end(after)
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
        self.set_owner(crate::sync::this_thread());
        self.owned()
    }

    /// The bytes it holds.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// As [`Pin::segments`].
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        match self.key {
            Some(key) => self.file.service().segments(key, &self.range),
            None => Vec::new(),
        }
    }

    /// As [`Pin::view`].
    ///
    /// # Errors
    /// As [`Pin::view`].
    pub fn view(&self) -> Result<View<'_>> {
        match self.key {
            Some(key) => View::pinned(self.file.clone(), key, self.range.clone(), self.mode),
            None => Err(Error::InvalidArgument("the pin is released".into())),
        }
    }

    /// As [`Pin::release_with`].
    ///
    /// # Errors
    /// As [`Pin::release_with`].
    pub fn release_with(mut self, after: After) -> Result<u64> {
        self.end(after)
    }

    fn set_owner(&self, owner: pageferry_engine::Owner) {
        if let Some(key) = self.key {
            self.file.service().set_owner(key, owner);
        }
    }

    fn end(&mut self, after: After) -> Result<u64> {
        let Some(key) = self.key.take() else { return Ok(0) };
        let range = &self.range;
        let Released { written_bytes, refused } = self.file.service().release(key, range, after)?;
        refused.map_or(Ok(written_bytes), |why| Err(Error::Unguarded { range: range.clone(), why }))
    }
}

impl Drop for DetachedPin {
    fn drop(&mut self) {
        let result = self.end(After::WriteBack).map(drop);
        if let Err(error) = result.or_else(Error::unless_forked) {
            self.file.handle.cache.service.count_failed_release();
            let file = self.file.name();
            tracing::error!(file, range = ?self.range, %error, "releasing a dropped pin failed");
        }
    }
}
