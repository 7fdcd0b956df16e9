//! How kernels see a file: by file offset, through the device's MMU.
//!
//! A view over a pin reaches what the pin holds. A view on demand holds nothing at first: the
//! device's page fault on a page that no pin covers is served by a pin of exactly the bytes of the
//! access, kept for the next accesses until the view has too many of them or closes.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use pageferry_device::{Access, DeviceAddr, FaultReason, Memory, MemoryFault};
use pageferry_engine::{Owner, PinKey};
use parking_lot::{Condvar, Mutex};

use crate::shared::Tally;
use crate::{After, Error, File, PinMode, Result, Wait};

/// Pins that a view on demand keeps at most.
const HELD_MAX: usize = 64;
/// A fault that is served and comes back this often at the same address is a bug, not a race.
const REFAULTS_MAX: u32 = 1000;

/// What a kernel sees of a file. Shared by all groups of a launch.
pub struct View<'a> {
    file: File,
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
    written: Vec<Range<u64>>,
    closed: bool,
}

struct HeldPin {
    key: PinKey,
    writes: bool,
    users: u32,
}

/// One access of a kernel, piece by piece.
enum Piece<'x, 'b> {
    Load(&'x mut &'b mut [u8]),
    Store(&'x mut &'b [u8]),
    Visit(u64, &'x mut dyn FnMut(&[u8])),
    Update(u64, &'x mut dyn FnMut(&mut [u8])),
}

impl Piece<'_, '_> {
    fn len(&self) -> u64 {
        match self {
            Piece::Load(buf) => buf.len() as u64,
            Piece::Store(bytes) => bytes.len() as u64,
            Piece::Visit(len, _) | Piece::Update(len, _) => *len,
        }
    }

    fn stores(&self) -> bool {
        matches!(self, Piece::Store(_) | Piece::Update(..))
    }

    /// Performs the first `len` bytes.
    fn perform(
        &mut self,
        memory: &dyn Memory,
        addr: DeviceAddr,
        len: u64,
    ) -> Result<(), MemoryFault> {
        match self {
            Piece::Load(buf) => memory.load(addr, &mut buf[..len as usize]),
            Piece::Store(bytes) => memory.store(addr, &bytes[..len as usize]),
            Piece::Visit(_, visit) => memory.visit(addr, len, visit),
            Piece::Update(_, update) => memory.update(addr, len, update),
        }
    }

    fn advance(&mut self, by: u64) {
        match self {
            Piece::Load(buf) => {
                let taken = std::mem::take(*buf);
                **buf = &mut taken[by as usize..];
            }
            Piece::Store(bytes) => **bytes = &bytes[by as usize..],
            Piece::Visit(len, _) | Piece::Update(len, _) => *len -= by,
        }
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
            owner: Some(pageferry_linux::current_tid()),
            held: Mutex::default(),
            idle: Condvar::new(),
            faults: AtomicU64::new(0),
        });
        View::new(file, kind)
    }

    fn new<'a>(file: File, kind: Kind) -> Result<View<'a>> {
        let shared = &file.handle.cache.shared;
        if shared.device.processors().is_none() {
            let what = format!("{} runs no host closures", shared.info.name);
            return Err(Error::Unsupported(what));
        }
        Ok(View { file, kind, _pin: PhantomData })
    }

    /// Loads `buf.len()` bytes.
    ///
    /// # Errors
    /// [`Error::OutsidePin`], [`Error::PastEof`], and on demand whatever a pin can fail with.
    pub fn read(&self, offset: u64, mut buf: &mut [u8]) -> Result<()> {
        self.access(offset, Piece::Load(&mut buf))
    }

    /// Stores `bytes`.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Error::OutsidePin`] also for a store through a read pin.
    pub fn write(&self, offset: u64, mut bytes: &[u8]) -> Result<()> {
        self.access(offset, Piece::Store(&mut bytes))
    }

    /// Calls `f` with the range's bytes where they are, piece by piece, in order.
    ///
    /// # Errors
    /// As [`read`](Self::read); earlier pieces have been visited.
    pub fn visit(&self, range: Range<u64>, f: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.access(range.start, Piece::Visit(range.end.saturating_sub(range.start), f))
    }

    /// Calls `f` with the range's bytes for modification in place, piece by piece, in order. Pieces
    /// break at multiples of 4096 bytes at the finest.
    ///
    /// # Errors
    /// As [`write`](Self::write); earlier pieces have been updated.
    pub fn update(&self, range: Range<u64>, f: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        self.access(range.start, Piece::Update(range.end.saturating_sub(range.start), f))
    }

    fn access(&self, offset: u64, mut piece: Piece<'_, '_>) -> Result<()> {
        let Some(end) = offset.checked_add(piece.len()) else {
            return Err(Error::InvalidArgument(format!("an access at {offset} wraps")));
        };
        match &self.kind {
            Kind::Pinned { key, range, mode } => {
                let stores = piece.stores();
                if offset < range.start || end > range.end || (stores && *mode == PinMode::Read) {
                    return Err(Error::OutsidePin {
                        access: if stores { "store" } else { "load" },
                        range: offset..end,
                        pinned: range.clone(),
                        mode: if *mode == PinMode::Read { "read" } else { "write" },
                    });
                }
                self.through(*key, offset..end, &mut piece)
            }
            Kind::OnDemand(demand) => self.fault_in(demand, offset..end, &mut piece),
        }
    }

    /// Accesses bytes that the pin holds; serves the faults that remain possible.
    fn through(&self, key: PinKey, range: Range<u64>, piece: &mut Piece<'_, '_>) -> Result<()> {
        let shared = &self.file.handle.cache.shared;
        let Some(processors) = shared.device.processors() else {
            return Err(Error::Unsupported("the device runs no host closures".into()));
        };
        let (mut at, mut refaults) = (range.start, 0);
        while at < range.end {
            // Addresses are contiguous inside a region.
            let region_end = (at / shared.info.region_bytes + 1) * shared.info.region_bytes;
            let len = range.end.min(region_end) - at;
            let past_eof = |bytes| Error::PastEof { range: at..range.end, file_bytes: bytes };
            let Some(addr) = self.file.handle.backing.addr(at) else {
                return Err(past_eof(self.file.len()?));
            };
            match piece.perform(processors.memory(), addr, len) {
                Ok(()) => {
                    piece.advance(len);
                    at += len;
                }
                Err(fault) => {
                    let done = fault.addr.0 - addr.0;
                    piece.advance(done);
                    at += done;
                    refaults = if done > 0 { 0 } else { refaults + 1 };
                    self.serve(key, at, &fault)?;
                    if refaults > REFAULTS_MAX {
                        return Err(Error::KernelFailed(format!("{fault} cannot be served")));
                    }
                }
            }
        }
        Ok(())
    }

    /// A fault on a page that the pin holds: a first store, or a page cut off meanwhile.
    fn serve(&self, key: PinKey, at: u64, fault: &MemoryFault) -> Result<()> {
        let shared = &self.file.handle.cache.shared;
        Tally::add(&shared.tally.device_faults, 1);
        if fault.reason == FaultReason::Lost {
            return Err(Error::Device(pageferry_device::DeviceError::Lost));
        }
        // Under the lock: a truncation makes its pages unreachable only after it has cut the pin.
        let core = shared.core.lock();
        let page = at & !4095;
        let end = core.engine.pin_end(key);
        if fault.reason == FaultReason::NotPresent && page < end {
            // Somebody's fetch of newer bytes failed half-way.
            return Err(Error::Device(pageferry_device::DeviceError::CopyIn { len: 4096 }));
        }
        if page >= end {
            let file_bytes = core.engine.file_bytes(self.file.handle.backing.key).unwrap_or(0);
            return Err(Error::PastEof { range: at..at + 1, file_bytes });
        }
        let frame_end = (page / shared.info.frame_bytes + 1) * shared.info.frame_bytes;
        let page_addr = DeviceAddr(fault.addr.0 & !4095);
        let bytes = end.min(frame_end) - page;
        shared.device.protect(page_addr, bytes, Some(Access::Write)).map_err(Error::Device)
    }

    fn fault_in(
        &self,
        demand: &OnDemand,
        range: Range<u64>,
        piece: &mut Piece<'_, '_>,
    ) -> Result<()> {
        let stores = piece.stores();
        if stores && !demand.writable {
            return Err(Error::ReadOnly("the view".into()));
        }
        let frame = self.file.handle.cache.shared.info.frame_bytes;
        let mut at = range.start;
        while at < range.end {
            // One folio at a time: an access of any length needs one frame.
            let end = range.end.min((at / frame + 1) * frame);
            let (slot, key) = self.hold(demand, at..end, stores)?;
            let mut done = Ok(());
            match piece {
                Piece::Load(buf) => {
                    let mut part = &mut buf[..(end - at) as usize];
                    done = self.through(key, at..end, &mut Piece::Load(&mut part));
                }
                Piece::Store(bytes) => {
                    let mut part = &bytes[..(end - at) as usize];
                    done = self.through(key, at..end, &mut Piece::Store(&mut part));
                }
                Piece::Visit(_, f) => {
                    done = done.and(self.through(key, at..end, &mut Piece::Visit(end - at, *f)));
                }
                Piece::Update(_, f) => {
                    done = done.and(self.through(key, at..end, &mut Piece::Update(end - at, *f)));
                }
            }
            demand.unuse(slot);
            done?;
            piece.advance(end - at);
            at = end;
        }
        Ok(())
    }

    /// A pin of the view over the range, one it has or a new one; in use until `unuse`.
    fn hold(
        &self,
        demand: &OnDemand,
        range: Range<u64>,
        stores: bool,
    ) -> Result<((u64, u64), PinKey)> {
        let mut held = demand.held.lock();
        loop {
            if held.closed {
                return Err(Error::InvalidArgument("the view is closed".into()));
            }
            let covering = held
                .pins
                .range_mut(..=(range.start, u64::MAX))
                .rev()
                .take(8)
                .find(|((_, end), p)| range.end <= *end && (p.writes || !stores));
            if let Some((slot, pin)) = covering {
                pin.users += 1;
                return Ok((*slot, pin.key));
            }
            // What overlaps in the way of the new pin has to go, once nobody uses it.
            let clash = |(start, end): &(u64, u64), p: &HeldPin| {
                *start < range.end && range.start < *end && (p.writes || stores)
            };
            let over: Vec<_> =
                held.pins.iter().filter(|(s, p)| clash(s, p)).map(|(s, _)| *s).collect();
            if over.iter().any(|s| held.pins.get(s).is_some_and(|p| p.users > 0)) {
                demand.idle.wait(&mut held);
                continue;
            }
            let mut drop_first = over;
            if held.pins.len() >= HELD_MAX {
                drop_first.extend(held.pins.iter().filter(|(_, p)| p.users == 0).map(|(s, _)| *s));
            }
            for slot in drop_first {
                self.let_go(&mut held, slot)?;
            }
            let mode = if stores { PinMode::Write } else { PinMode::Read };
            let pinned = self.file.pin_key(range.clone(), mode, Wait::Block, demand.owner);
            let key = match pinned {
                Ok(key) => key,
                // Our own idle pins may be what is in the way of a frame.
                Err(Error::DeviceFull { .. } | Error::WouldDeadlock { .. })
                    if held.pins.values().any(|p| p.users == 0) =>
                {
                    let idle: Vec<_> =
                        held.pins.iter().filter(|(_, p)| p.users == 0).map(|(s, _)| *s).collect();
                    for slot in idle {
                        self.let_go(&mut held, slot)?;
                    }
                    continue;
                }
                Err(Error::DeviceFull { .. }) if held.pins.values().any(|p| p.users > 0) => {
                    demand.idle.wait(&mut held);
                    continue;
                }
                Err(error) => return Err(error),
            };
            demand.faults.fetch_add(1, Ordering::Relaxed);
            let slot = (range.start, range.end);
            held.pins.insert(slot, HeldPin { key, writes: stores, users: 1 });
            return Ok((slot, key));
        }
    }

    fn let_go(&self, held: &mut Held, slot: (u64, u64)) -> Result<()> {
        if let Some(pin) = held.pins.remove(&slot) {
            let range = slot.0..slot.1;
            if pin.writes {
                held.written.push(range.clone());
            }
            self.file.release_key(pin.key, &range, After::KeepAway)?;
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
        let shared = &self.file.handle.cache.shared;
        let mut written = 0;
        let (first, last) =
            held.written.iter().fold((u64::MAX, 0), |(a, b), r| (a.min(r.start), b.max(r.end)));
        if first < last {
            match shared.flush(self.file.handle.backing.key, first..last, false) {
                Ok(bytes) => written = bytes,
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        let faults = demand.faults.load(Ordering::Relaxed);
        failed.map_or(Ok(ViewSummary { faults, written_back_bytes: written }), Err)
    }
}

impl OnDemand {
    fn unuse(&self, slot: (u64, u64)) {
        let mut held = self.held.lock();
        if let Some(pin) = held.pins.get_mut(&slot) {
            pin.users -= 1;
        }
        self.idle.notify_all();
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            let shared = &self.file.handle.cache.shared;
            Tally::add(&shared.tally.failed_releases, 1);
            tracing::error!(%error, "closing a dropped view failed");
        }
    }
}
