//! The vocabulary between the engine and whoever performs its actions.

use std::ops::Range;

/// The grain of validity and dirtiness, in bytes.
pub const PAGE_BYTES: u64 = 4096;

/// A frame of device memory, as the device names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId(pub u32);

/// A file that the engine knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey(pub u32);

/// A CPU mapping of a file, named by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapKey(pub u64);

/// A granted pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinKey(pub u64);

/// A request in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpKey(pub u64);

/// An action handed out and not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionKey(pub u64);

/// The thread that holds a pin or waits, by a number that the caller gives it (its kernel id, say); `None` for
/// nobody in particular, who is assumed to get on whatever others wait for.
pub type Owner = Option<u64>;

/// What one look at a file told.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Observed {
    /// The file's size.
    pub bytes: u64,
    /// Rises when somebody else may have changed the file since the last look; a change of our own does
    /// not raise it.
    pub epoch: u64,
    /// Where they may have changed it since the epoch that the look was asked from; `None`: anywhere.
    pub parts: Option<Vec<Range<u64>>>,
}

/// What the device may do under a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Load. Read pins of the same bytes share.
    Read,
    /// Load and store. Excludes other pins of its bytes.
    Write,
    /// As `Write`, without fetching pages that the pin covers whole.
    Overwrite,
}

impl Mode {
    /// The device may store.
    #[must_use]
    pub fn writes(self) -> bool {
        !matches!(self, Mode::Read)
    }
}

/// What somebody wants. All ranges are in bytes of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Hold a range on the device.
    Pin {
        /// Which file.
        file: FileKey,
        /// Not empty; ends at most at the end of the page that holds the end of file.
        range: Range<u64>,
        /// What the device will do.
        mode: Mode,
    },
    /// End a pin; stored-to pages go home, or stay away.
    Release {
        /// Which pin.
        pin: PinKey,
        /// Leave stored-to pages away.
        keep: bool,
    },
    /// Change bytes of the file through a system call (the performer knows which): dirty pages of
    /// the range go home first, copies of it are dropped after.
    Change {
        /// Which file.
        file: FileKey,
        /// The bytes whose content changes; to `u64::MAX` where everything behind moves.
        range: Range<u64>,
        /// The call may change the file's size.
        resizes: bool,
    },
    /// Set the file's size. Never waits for pins.
    Resize {
        /// Which file.
        file: FileKey,
        /// New size.
        bytes: u64,
    },
    /// Bring dirty bytes home (they stay on the device as copies).
    Flush {
        /// Which file.
        file: FileKey,
        /// Which bytes.
        range: Range<u64>,
        /// Leave out bytes under live write pins instead of waiting for their release: they go home
        /// before they are pinned for writing again.
        skip_pinned: bool,
    },
    /// Take unpinned pages off the device.
    Evict {
        /// Which file.
        file: FileKey,
        /// Which bytes; only pages wholly inside go (the last page of the file counts as whole).
        range: Range<u64>,
    },
    /// A CPU access of a trapped page: bring it home.
    Touch {
        /// Which file.
        file: FileKey,
        /// The byte touched.
        at: u64,
    },
    /// A CPU access of a trapped page that cannot be served: end its waiting with an error.
    Expel {
        /// Which file.
        file: FileKey,
        /// The mapping it goes through.
        map: MapKey,
        /// The byte touched.
        at: u64,
    },
    /// A new CPU mapping.
    MapIn {
        /// Which file.
        file: FileKey,
        /// The caller's name for it.
        map: MapKey,
        /// Page-aligned.
        range: Range<u64>,
        /// Stores are possible.
        writable: bool,
    },
    /// The end of a CPU mapping.
    MapOut {
        /// Which file.
        file: FileKey,
        /// Which mapping.
        map: MapKey,
    },
    /// Where pages are now, moving nothing.
    Query {
        /// Which file.
        file: FileKey,
        /// Which bytes.
        range: Range<u64>,
    },
    /// Everything home, every frame free, the file forgotten.
    Close {
        /// Which file; it must have no pins and no maps.
        file: FileKey,
    },
}

/// How a request ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The range is on the device.
    Pinned(PinKey),
    /// The pin is gone.
    Released {
        /// Bytes written back by this release.
        written_bytes: u64,
        /// Bytes that the device wrote beyond an end of file which moved below them.
        lost_bytes: u64,
        /// The lowest size that the file had under the pin, where it cut the pin.
        cut: Option<u64>,
    },
    /// Flushed or evicted: bytes written back, bytes taken off the device.
    Moved {
        /// Written back.
        written_bytes: u64,
        /// Taken off.
        evicted_bytes: u64,
    },
    /// A query's answer: ascending, without gaps inside the file.
    Placed(Vec<Placement>),
    /// Changed, resized, touched, mapped, unmapped, closed.
    Done,
}

/// Where a stretch of a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes of the file.
    pub range: Range<u64>,
    /// Their state.
    pub state: PageState,
    /// Some pin holds them.
    pub pinned: bool,
}

/// Where the newest version of a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// In the page cache (or on storage) only.
    Home,
    /// In the page cache; the device has a clean duplicate.
    Copy,
    /// On the device only.
    Away,
}

/// Why a request was refused. `E` is the performer's error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal<E> {
    /// The range is empty or wraps.
    BadRange,
    /// The range ends beyond the page that holds the end of file.
    PastEof {
        /// The file's size.
        file_bytes: u64,
    },
    /// It would have had to wait and was told not to.
    WouldBlock,
    /// The performer's deadline passed.
    TimedOut,
    /// Waiting could never end.
    WouldDeadlock,
    /// More frames are needed than can become free.
    Full {
        /// Frames that the request needs in all.
        needed_frames: u64,
        /// Frames that pins of others hold.
        pinned_frames: u64,
    },
    /// The file, pin or map is not known, or still in use.
    Gone,
    /// An action failed.
    Failed(E),
}

/// A thing to do outside the engine's lock. Page locks of the ranges named are held until its
/// completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at the file. Reply: [`Reply::Observed`].
    Observe {
        /// Which file.
        file: FileKey,
        /// The last epoch heard of.
        since: u64,
    },
    /// How long is the file? Nothing else is asked. Reply: [`Reply::Measured`].
    Measure {
        /// Which file.
        file: FileKey,
    },
    /// Which pages were stored to through a mapping since last asked; re-arm. Reply:
    /// [`Reply::Stored`].
    ScanStores {
        /// Which file.
        file: FileKey,
        /// Which mapping.
        map: MapKey,
        /// Which pages.
        range: Range<u64>,
    },
    /// Make CPU accesses of pages of one mapping wait. Reply: [`Reply::Stored`], as for `ScanStores`,
    /// of all stores that came before the accesses began to wait.
    Trap {
        /// Which file.
        file: FileKey,
        /// Which mapping.
        map: MapKey,
        /// Which pages.
        range: Range<u64>,
    },
    /// Let CPU accesses reach the file again, and wake those that wait. Reply: [`Reply::Done`].
    Untrap {
        /// Which file.
        file: FileKey,
        /// Which mapping.
        map: MapKey,
        /// Which pages.
        range: Range<u64>,
    },
    /// Take a frame from the device and attach it as this folio. Reply: [`Reply::Frame`].
    Allocate {
        /// Which file.
        file: FileKey,
        /// Which folio: `offset / frame_bytes`.
        folio: u64,
    },
    /// Detach a frame from one folio and attach it as another. Reply: [`Reply::Done`].
    Steal {
        /// The frame.
        frame: FrameId,
        /// Where it was.
        from: (FileKey, u64),
        /// Where it goes.
        to: (FileKey, u64),
    },
    /// Detach a frame and give it back to the device. Reply: [`Reply::Done`].
    Free {
        /// The frame.
        frame: FrameId,
        /// Which file.
        file: FileKey,
        /// Which folio.
        folio: u64,
    },
    /// Copy pages from the file onto the frame (zeros past the end of file), then make them
    /// readable to kernels. Reply: [`Reply::Fetched`].
    Fetch {
        /// Which file.
        file: FileKey,
        /// The frame.
        frame: FrameId,
        /// Which pages: inside one folio.
        range: Range<u64>,
        /// Zero them instead of reading: they are about to be overwritten.
        zero: bool,
    },
    /// Copy bytes from the frame into the file, never beyond its end; then look at it. Reply:
    /// [`Reply::WroteBack`].
    WriteBack {
        /// Which file.
        file: FileKey,
        /// The frame.
        frame: FrameId,
        /// Which bytes: inside one folio.
        range: Range<u64>,
    },
    /// Make the pages read-only to kernels and report which were stored to. Reply:
    /// [`Reply::Dirty`].
    TakeDirty {
        /// Which file.
        file: FileKey,
        /// Which pages.
        range: Range<u64>,
    },
    /// Make pages unreachable for kernels. Reply: [`Reply::Done`].
    Hide {
        /// Which file.
        file: FileKey,
        /// Which pages: each range inside one folio.
        ranges: Vec<Range<u64>>,
    },
    /// The system call that a `Change` or `Resize` is about; then look at the file. Reply:
    /// [`Reply::Changed`].
    Change {
        /// Which file.
        file: FileKey,
    },
    /// End the waiting for one trapped page with an error, then trap it anew. Reply:
    /// [`Reply::Done`].
    Expel {
        /// Which file.
        file: FileKey,
        /// Which mapping.
        map: MapKey,
        /// The page.
        at: u64,
    },
    /// Create the mapping with these pages trapped from the start. Reply: [`Reply::Done`].
    MapIn {
        /// Which file.
        file: FileKey,
        /// Which mapping.
        map: MapKey,
        /// Its pages.
        range: Range<u64>,
        /// Pages to trap.
        traps: Vec<Range<u64>>,
    },
    /// Remove the mapping. Reply: [`Reply::Done`].
    MapOut {
        /// Which file.
        file: FileKey,
        /// Which mapping.
        map: MapKey,
    },
}

/// How an action ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<E> {
    /// As asked.
    Done,
    /// What the look told.
    Observed(Observed),
    /// The file's size now.
    Measured(u64),
    /// Pages stored to (page-aligned file ranges); `None`: cannot tell, take all.
    Stored(Option<Vec<Range<u64>>>),
    /// The new frame.
    Frame(FrameId),
    /// The pages are on the frame.
    Fetched {
        /// The file ended before the engine thought it would.
        short: bool,
    },
    /// The bytes are in the page cache.
    WroteBack {
        /// Bytes written: fewer than asked if the file ended before.
        bytes: u64,
        /// The file's size after the last.
        after: u64,
    },
    /// Pages stored to (page-aligned file ranges); `None`: cannot tell, take all.
    Dirty(Option<Vec<Range<u64>>>),
    /// The call was made; `error` tells if it failed (then some bytes may have changed).
    Changed {
        /// The file's size after the call.
        after: u64,
        /// Its failure.
        error: Option<E>,
    },
    /// It failed and nothing of what it names has changed (a fetch may have spoilt its pages, and of
    /// stores that were asked about some may have been forgotten; a frame that could not be stolen
    /// has gone back to the device).
    Failed {
        /// What the engine must know about the failure.
        class: Class,
        /// What the caller will see.
        error: E,
    },
}

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The kernel's limit on mappings.
    OutOfVmas,
    /// The device has no frame left although the budget says so.
    NoFrame,
    /// The device is gone.
    DeviceLost,
    /// Anything else.
    Other,
}

/// What the driver of a request has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<E> {
    /// Perform this, then [`complete`](crate::Engine::complete) it. Several may be out at once:
    /// further threads may poll the same request to help.
    Do(ActionKey, Action),
    /// Poll again after something changed.
    Wait(WaitFor),
    /// It ended; the key is forgotten.
    Done(Result<Outcome, Refusal<E>>),
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// The release of pins, or the end of a change: deadlines apply.
    Pins,
    /// A frame that pins hold: deadlines apply.
    Frames,
    /// Actions under way, which end by themselves.
    Io,
}
