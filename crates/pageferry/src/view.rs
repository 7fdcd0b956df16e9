//! How kernels see a file: by file offset, through the device's MMU.
//!
//! A view over a pin reaches what the pin holds. A view on demand holds nothing at first: the
//! device's page fault on a page that no pin covers is served by a pin of exactly the bytes of the
//! access, kept for the next accesses until the view has too many of them or closes.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::{Condvar, Mutex, this_thread};
use pageferry_device::Access;
use pageferry_engine::range::RangeSet;
use pageferry_engine::{Owner, PinKey};

use crate::file::not_granted;
use crate::service::Piece;
use crate::{After, Error, File, PinMode, Result, Wait};

/// Pins that a view on demand keeps at most.
const HELD_MAX: usize = 64;
/// Bytes of one call of a kernel's closure: a piece stays in the CPU's cache.
const PIECE_BYTES: u64 = 64 << 10;

/// What a kernel sees of a file. Shared by all groups of a launch.
pub struct View<'a> {
    file: File,
    frame_bytes: u64,
    kind: Kind,
    _pin: PhantomData<&'a ()>,
}

enum Kind {
    Pinned { key: PinKey, range: Range<u64>, mode: PinMode },
    OnDemand(OnDemand),
}

/// What an on-demand view did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewSummary {
    /// Device page faults that were served by a pin.
    pub faults: u64,
    /// Bytes written back at its end.
    pub written_back_bytes: u64,
}

struct OnDemand {
    writable: bool,
    owner: Owner,
    held: Mutex<Held>,
    idle: Condvar,
    faults: AtomicU64,
}

#[derive(Default)]
struct Held {
    /// By first byte; they do not overlap one another where one writes.
    pins: BTreeMap<(u64, u64), HeldPin>,
    /// What was written and released with `KeepAway`: flushed at the end.
    written: RangeSet,
    /// Bytes that went home at once.
    written_bytes: u64,
    /// What is being pinned.
    coming: RangeSet,
    /// Counts uses.
    clock: u64,
    closed: bool,
}

struct HeldPin {
    key: PinKey,
    writes: bool,
    users: u32,
    /// When it was last taken into use.
    used: u64,
}

impl Held {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Takes a pin into use that holds the range.
    fn take_covering(&mut self, range: &Range<u64>, stores: bool) -> Option<((u64, u64), PinKey)> {
        let used = self.tick();
        let (slot, pin) = self
            .pins
            .range_mut(..=(range.start, u64::MAX))
            .rev()
            .take(8)
            .find(|((_, end), p)| range.end <= *end && (p.writes || !stores))?;
        pin.users += 1;
        pin.used = used;
        Some((*slot, pin.key))
    }

    /// Pins that a new one over the range could not stand beside.
    fn clashes(&self, range: &Range<u64>, stores: bool) -> Vec<(u64, u64)> {
        let clash = |(start, end): &(u64, u64), p: &HeldPin| {
            *start < range.end && range.start < *end && (p.writes || stores)
        };
        self.pins.iter().filter(|(s, p)| clash(s, p)).map(|(s, _)| *s).collect()
    }

    /// At most `n` pins that are not in use, the longest unused ones.
    fn coldest(&self, n: usize) -> Vec<(u64, u64)> {
        let idle = self.pins.iter().filter(|(_, p)| p.users == 0);
        let mut idle: Vec<_> = idle.map(|(slot, p)| (p.used, *slot)).collect();
        idle.sort_unstable();
        idle.into_iter().take(n).map(|(_, slot)| slot).collect()
    }
}

impl View<'_> {
    pub(crate) fn pinned<'a>(
        file: File,
        key: PinKey,
        range: Range<u64>,
        mode: PinMode,
    ) -> Result<View<'a>> {
        View::new(file, Kind::Pinned { key, range, mode })
    }

    pub(crate) fn on_demand(file: File, writable: bool) -> Result<View<'static>> {
        let kind = Kind::OnDemand(OnDemand {
            writable,
            owner: this_thread(),
            held: Mutex::default(),
            idle: Condvar::new(),
            faults: AtomicU64::new(0),
        });
        View::new(file, kind)
    }

    fn new<'a>(file: File, kind: Kind) -> Result<View<'a>> {
        let device = file.handle.cache.device();
        if device.processors().is_none() {
            let what = format!("{} runs no host closures", device.info().name);
            return Err(Error::Unsupported(what));
        }
        let frame_bytes = device.info().frame_bytes;
        Ok(View { file, frame_bytes, kind, _pin: PhantomData })
    }

    /// Loads `buf.len()` bytes.
    ///
    /// # Errors
    /// [`Error::OutsidePin`], [`Error::PastEof`], and on demand whatever a pin can fail with.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.access(offset, Piece::Load(buf, Access::Read))
    }

    /// Stores `bytes`.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Error::OutsidePin`] also for a store through a read pin.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.access(offset, Piece::Store(bytes))
    }

    /// Calls `f` with the range's bytes, piece by piece, in order. Pieces end at multiples of 64 KiB.
    /// `f` runs with nothing held: it may access the cache.
    ///
    /// # Errors
    /// As [`read`](Self::read); earlier pieces have been visited.
    pub fn visit(&self, range: Range<u64>, f: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.permit(&range, Access::Read)?;
        for_pieces(range, |at, buf| {
            self.access(at, Piece::Load(buf, Access::Read))?;
            f(buf);
            Ok(())
        })
    }

    /// Loads, calls `f` for modification, and stores, piece by piece, in order. Pieces end at
    /// multiples of 64 KiB. `f` runs with nothing held: it may access the cache; and two groups that
    /// update the same bytes at once race, as on any device.
    ///
    /// # Errors
    /// As [`write`](Self::write); earlier pieces have been updated.
    pub fn update(&self, range: Range<u64>, f: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        self.permit(&range, Access::Write)?;
        for_pieces(range, |at, buf| {
            self.access(at, Piece::Load(buf, Access::Write))?;
            f(buf);
            self.access(at, Piece::Store(buf))
        })
    }

    /// A view over a pin reaches what the pin holds, and stores only if the pin does.
    fn permit(&self, wanted: &Range<u64>, access: Access) -> Result<()> {
        let Kind::Pinned { range, mode, .. } = &self.kind else { return Ok(()) };
        let stores = access == Access::Write;
        if wanted.start < range.start
            || wanted.end > range.end
            || (stores && *mode == PinMode::Read)
        {
            return Err(Error::OutsidePin {
                access: if stores { "store" } else { "load" },
                range: wanted.clone(),
                pinned: range.clone(),
                mode: if *mode == PinMode::Read { "read" } else { "write" },
            });
        }
        Ok(())
    }

    fn access(&self, offset: u64, mut piece: Piece<'_>) -> Result<()> {
        let Some(end) = offset.checked_add(piece.len()) else {
            return Err(Error::InvalidArgument(format!("an access at {offset} wraps")));
        };
        match &self.kind {
            Kind::Pinned { key, .. } => {
                self.permit(&(offset..end), piece.access())?;
                self.file.service().access(*key, offset..end, &mut piece)
            }
            Kind::OnDemand(demand) => self.fault_in(demand, offset..end, &mut piece),
        }
    }

    fn fault_in(&self, demand: &OnDemand, range: Range<u64>, piece: &mut Piece<'_>) -> Result<()> {
        let stores = piece.access() == Access::Write;
        if stores && !demand.writable {
            return Err(Error::ReadOnly("the view".into()));
        }
        let frame = self.frame_bytes;
        let mut at = range.start;
        while at < range.end {
            // One folio at a time: an access of any length needs one frame.
            let end = range.end.min((at / frame).saturating_add(1).saturating_mul(frame));
            let held = self.hold(demand, at..end, stores)?;
            match piece {
                Piece::Load(buf, access) => {
                    let part = &mut buf[..(end - at) as usize];
                    let part = &mut Piece::Load(part, *access);
                    self.file.service().access(held.key, at..end, part)?;
                }
                Piece::Store(bytes) => {
                    let part = &bytes[..(end - at) as usize];
                    self.file.service().access(held.key, at..end, &mut Piece::Store(part))?;
                }
            }
            drop(held);
            piece.advance(end - at);
            at = end;
        }
        Ok(())
    }

    /// A pin of the view over the range, one it has or a new one; in use until dropped.
    ///
    /// An access that is under way needs no second pin, so a pin in use is let go soon whatever
    /// others wait for; only the idle ones could keep somebody waiting for ever.
    fn hold<'d>(&self, demand: &'d OnDemand, range: Range<u64>, stores: bool) -> Result<InUse<'d>> {
        let slot = (range.start, range.end);
        let mode = if stores { PinMode::Write } else { PinMode::Read };
        let mut held = demand.held.lock();
        loop {
            if held.closed {
                return Err(Error::InvalidArgument("the view is closed".into()));
            }
            if let Some((slot, key)) = held.take_covering(&range, stores) {
                return Ok(InUse { demand, slot, key });
            }
            // What overlaps in the way of the new pin has to go, once nobody uses it.
            let over = held.clashes(&range, stores);
            let in_use = over.iter().any(|s| held.pins.get(s).is_some_and(|p| p.users > 0));
            if in_use || held.coming.intersects(range.clone()) {
                demand.idle.wait(&mut held);
                continue;
            }
            let surplus = (held.pins.len() + 1).saturating_sub(over.len() + HELD_MAX);
            for slot in over.into_iter().chain(held.coldest(surplus)) {
                self.let_go(&mut held, slot)?;
            }
            // A view that waits holds nothing that it does not use: another may wait for that.
            let wait = if held.coldest(1).is_empty() { Wait::Block } else { Wait::Try };
            held.coming.add(range.clone());
            drop(held);
            let pinned = self.pin(&range, mode, wait, demand.owner);
            held = demand.held.lock();
            held.coming.remove(range.clone());
            demand.idle.notify_all();
            match pinned {
                Ok(key) => {
                    demand.faults.fetch_add(1, Ordering::Relaxed);
                    let used = held.tick();
                    held.pins.insert(slot, HeldPin { key, writes: stores, users: 1, used });
                    return Ok(InUse { demand, slot, key });
                }
                Err(error) => {
                    let enough = match &error {
                        Error::DeviceFull { .. } => 1,
                        Error::WouldBlock { .. } | Error::WouldDeadlock { .. } => HELD_MAX,
                        _ => return Err(error),
                    };
                    let idle = held.coldest(enough);
                    if idle.is_empty() && held.pins.is_empty() && held.coming.is_empty() {
                        return Err(error);
                    }
                    if idle.is_empty() {
                        demand.idle.wait(&mut held);
                    }
                    for slot in idle {
                        self.let_go(&mut held, slot)?;
                    }
                }
            }
        }
    }

    fn pin(&self, range: &Range<u64>, mode: PinMode, wait: Wait, owner: Owner) -> Result<PinKey> {
        let pins = self.file.service().pin(std::slice::from_ref(range), mode, wait, owner)?;
        pins.first().copied().ok_or_else(not_granted)
    }

    fn let_go(&self, held: &mut Held, slot: (u64, u64)) -> Result<()> {
        if let Some(pin) = held.pins.remove(&slot) {
            let range = slot.0..slot.1;
            if pin.writes {
                held.written.add(range.clone());
            }
            // What no guard keeps goes home now instead of at the view's end.
            let released = self.file.service().release(pin.key, &range, After::KeepAway)?;
            held.written_bytes += released.written_bytes;
        }
        Ok(())
    }

    /// Ends the view. An on-demand one releases what it took and writes back what was stored.
    ///
    /// # Errors
    /// As [`Pin::release_with`](crate::Pin::release_with); everything is released all the same.
    pub fn close(self) -> Result<ViewSummary> {
        self.finish()
    }

    fn finish(&self) -> Result<ViewSummary> {
        let Kind::OnDemand(demand) = &self.kind else { return Ok(ViewSummary::default()) };
        self.file.handle.cache.service.not_forked()?;
        let mut held = demand.held.lock();
        if std::mem::replace(&mut held.closed, true) {
            return Ok(ViewSummary::default());
        }
        let mut failed = None;
        let slots: Vec<_> = held.pins.keys().copied().collect();
        for slot in slots {
            if let Err(error) = self.let_go(&mut held, slot) {
                failed.get_or_insert(error);
            }
        }
        let mut written = held.written_bytes;
        // What was written and no more: another's pin in between is none of this view's business.
        for (range, ()) in held.written.iter() {
            match self.file.flush(range) {
                Ok(bytes) => written += bytes,
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        let faults = demand.faults.load(Ordering::Relaxed);
        failed.map_or(Ok(ViewSummary { faults, written_back_bytes: written }), Err)
    }
}

/// A pin that an access goes through: it is not let go meanwhile.
struct InUse<'d> {
    demand: &'d OnDemand,
    slot: (u64, u64),
    key: PinKey,
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let mut held = self.demand.held.lock();
        if let Some(pin) = held.pins.get_mut(&self.slot) {
            pin.users -= 1;
        }
        self.demand.idle.notify_all();
    }
}

/// Calls `f` with the offset of, and a buffer for, each piece of a range.
fn for_pieces(range: Range<u64>, mut f: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
    let mut buf = vec![0; range.end.saturating_sub(range.start).min(PIECE_BYTES) as usize];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(PIECE_BYTES - at % PIECE_BYTES);
        f(at, &mut buf[..len as usize])?;
        at += len;
    }
    Ok(())
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        let result = self.finish().map(drop);
        if let Err(error) = result.or_else(Error::unless_forked) {
            self.file.handle.cache.service.count_failed_release();
            tracing::error!(%error, "closing a dropped view failed");
        }
    }
}
