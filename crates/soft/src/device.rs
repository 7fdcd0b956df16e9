//! The device put together.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use pageferry_device::{
    Access, Device, DeviceAddr, DeviceError, DeviceInfo, Dirty, ExportedFrame, FrameId, FrameSpan,
    Memory, PAGE_BYTES, Processors, TransferError,
};
use parking_lot::{Mutex, RwLock};

use crate::address_space::{AddressSpace, REGION_BYTES};
use crate::arena::Arena;
use crate::fail::FailPoints;
use crate::pacing::Pacing;
use crate::stats::Counters;
use crate::workers::Workers;
use crate::{ConfigError, FailPoint, SoftConfig, SoftStats};

/// A copy holds the locks of at most so many bytes at once, in one call of its closure: long enough
/// that a `pread` into it is as good as one of the whole, short enough that a loss shows midway.
const COPY_BYTES: u64 = 1 << 20;

/// A device in software. See the crate's documentation.
pub struct SoftDevice {
    pub(crate) arena: Arena,
    pub(crate) frame_bytes: u64,
    frames: u64,
    pool: Mutex<Pool>,
    pub(crate) space: RwLock<AddressSpace>,
    /// By frame: some page was made writable since its dirty marks were last taken.
    written: Box<[AtomicBool]>,
    pub(crate) fail: FailPoints,
    pacing: Pacing,
    workers: Workers,
    pub(crate) counters: Counters,
}

/// Which frames are free.
#[derive(Default)]
struct Pool {
    free: Vec<FrameId>,
    /// Frames from here on were never used.
    fresh: u32,
    used: u64,
}

impl Pool {
    fn take(&mut self, frames: u64, frame_bytes: u64) -> Result<FrameId, DeviceError> {
        let frame = match self.free.pop() {
            Some(frame) => frame,
            None if u64::from(self.fresh) < frames => {
                self.fresh += 1;
                FrameId(self.fresh - 1)
            }
            None => return Err(DeviceError::Full { capacity_frames: frames, frame_bytes }),
        };
        self.used += 1;
        Ok(frame)
    }

    fn give_back(&mut self, frame: FrameId) {
        self.free.push(frame);
        self.used -= 1;
    }
}

impl SoftDevice {
    /// A device as configured.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: SoftConfig) -> Result<SoftDevice, ConfigError> {
        let frames = config.frames()?;
        let bytes = frames * config.frame_bytes;
        let arena = Arena::new(frames, config.frame_bytes, config.exportable)
            .map_err(|source| ConfigError::Memory { capacity_bytes: bytes, source })?;
        Ok(SoftDevice {
            arena,
            frame_bytes: config.frame_bytes,
            frames,
            pool: Mutex::default(),
            space: RwLock::default(),
            written: (0..frames).map(|_| AtomicBool::new(false)).collect(),
            fail: FailPoints::default(),
            pacing: Pacing::new(config.copy_latency, config.bandwidth_bytes_per_s),
            workers: Workers::new(config.workers),
            counters: Counters::default(),
        })
    }

    /// Makes the next `count` operations of that kind fail; [`FailPoint::Lost`] at the next
    /// operation of any kind, for good, whatever the count.
    pub fn arm(&self, point: FailPoint, count: u32) {
        self.fail.arm(point, count);
    }

    /// Forgets what is armed. A lost device stays lost.
    pub fn disarm(&self) {
        self.fail.disarm();
    }

    /// Loses the device now, also in the middle of copies.
    pub fn lose(&self) {
        self.fail.lose();
    }

    /// A snapshot of the counters.
    #[must_use]
    pub fn stats(&self) -> SoftStats {
        self.counters.snapshot()
    }

    /// A forked child has lost the device: its memory is not there, and its locks may be held for
    /// ever by threads that are not there either.
    pub(crate) fn alive(&self) -> Result<(), DeviceError> {
        if !self.arena.is_ours() || self.fail.lost() { Err(DeviceError::Lost) } else { Ok(()) }
    }

    fn check(&self, span: FrameSpan) -> Result<u64, DeviceError> {
        let FrameSpan { frame, offset, len } = span;
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.frame_bytes);
        if u64::from(frame.0) >= self.frames || !fits {
            let what = "the span is outside of the device's frames";
            return Err(DeviceError::Invalid { what, frame: Some(frame) });
        }
        Ok(u64::from(frame.0) * self.frame_bytes + offset)
    }

    /// Runs a copy piece by piece; an armed failure strikes after half of it.
    fn copy(
        &self,
        span: FrameSpan,
        point: FailPoint,
        mut piece: impl FnMut(u64, u64) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        self.alive()?;
        let base = self.check(span)?;
        let failure = match point {
            FailPoint::CopyIn => DeviceError::CopyIn { len: span.len },
            _ => DeviceError::CopyOut { len: span.len },
        };
        let fails = self.fail.fails(point);
        let until = if fails { span.len / 2 } else { span.len };
        let mut done = 0;
        while done < until {
            let len = (until - done).min(COPY_BYTES);
            self.pacing.pay(len);
            piece(base + done, len)?;
            done += len;
            if self.fail.is_lost() {
                return Err(DeviceError::Lost.into());
            }
        }
        if fails { Err(failure.into()) } else { Ok(()) }
    }

    fn pages(&self, frame: FrameId, range: Range<u64>) -> Range<u64> {
        let base = u64::from(frame.0) * self.frame_bytes;
        (base + range.start) / PAGE_BYTES..(base + range.end).div_ceil(PAGE_BYTES)
    }

    fn written(&self, frame: FrameId) -> &AtomicBool {
        &self.written[frame.0 as usize]
    }
}

impl Device for SoftDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "software device".into(),
            frame_bytes: self.frame_bytes,
            capacity_frames: self.frames,
            region_bytes: REGION_BYTES,
            dirty_bits: true,
            exports: self.arena.exports().is_some(),
        }
    }

    fn alloc_frame(&self) -> Result<FrameId, DeviceError> {
        self.alive()?;
        if self.fail.fails(FailPoint::Alloc) {
            return Err(DeviceError::AllocFailed { frame_bytes: self.frame_bytes });
        }
        let frame = self.pool.lock().take(self.frames, self.frame_bytes)?;
        // Nobody else knows the frame now, so this needs no lock of the pool's.
        self.renew(frame, false).inspect_err(|_| self.pool.lock().give_back(frame))?;
        Ok(frame)
    }

    fn free_frame(&self, frame: FrameId) {
        if !self.arena.is_ours() {
            return;
        }
        let mut pool = self.pool.lock();
        let known = frame.0 < pool.fresh && !pool.free.contains(&frame);
        let attached = self.space.read().is_attached(frame);
        debug_assert!(known && !attached, "{frame:?} is not to be freed");
        if known && !attached {
            pool.give_back(frame);
        }
    }

    fn frames_in_use(&self) -> u64 {
        if self.arena.is_ours() { self.pool.lock().used } else { 0 }
    }

    fn fill(
        &self,
        span: FrameSpan,
        source: &mut dyn FnMut(&mut [u8]) -> io::Result<()>,
    ) -> Result<(), TransferError> {
        self.copy(span, FailPoint::CopyIn, |at, len| {
            self.arena.copy_in(at, len, |bytes| source(bytes).map_err(TransferError::Host))
        })?;
        Counters::add(&self.counters.copies_in, 1);
        Counters::add(&self.counters.bytes_in, span.len);
        Ok(())
    }

    fn drain(
        &self,
        span: FrameSpan,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), TransferError> {
        self.copy(span, FailPoint::CopyOut, |at, len| {
            self.arena.copy_out(at, len, |bytes| sink(bytes).map_err(TransferError::Host))
        })?;
        Counters::add(&self.counters.copies_out, 1);
        Counters::add(&self.counters.bytes_out, span.len);
        Ok(())
    }

    fn zero(&self, span: FrameSpan) -> Result<(), DeviceError> {
        self.alive()?;
        let base = self.check(span)?;
        if span.len == 0 {
            return Ok(());
        }
        self.arena.copy_in(base, span.len, |bytes| {
            bytes.fill(0);
            Ok(())
        })
    }

    fn reserve_region(&self) -> Result<DeviceAddr, DeviceError> {
        self.alive()?;
        self.space.write().reserve()
    }

    fn release_region(&self, region: DeviceAddr) {
        if self.arena.is_ours() {
            self.space.write().release(region, self.frame_bytes);
        }
    }

    fn attach(&self, addr: DeviceAddr, frame: FrameId) -> Result<(), DeviceError> {
        self.alive()?;
        self.check(FrameSpan { frame, offset: 0, len: self.frame_bytes })?;
        if !self.arena.has_memory(frame) {
            let what = "the frame to attach has no memory";
            return Err(DeviceError::Invalid { what, frame: Some(frame) });
        }
        // The pages of a frame that is not attached are not present and clean: they were so in the
        // beginning, and `detach` makes them so.
        let mut space = self.space.write();
        space.attach(addr, frame, self.frame_bytes)?;
        self.written(frame).store(false, Ordering::SeqCst);
        Ok(())
    }

    fn detach(&self, addr: DeviceAddr) {
        if !self.arena.is_ours() {
            return;
        }
        let mut space = self.space.write();
        let Some(frame) = space.detach(addr.0 / self.frame_bytes) else { return };
        // New accesses wait for the table; those under way hold page locks, which this waits for,
        // and need nothing else. Before the table is free again, so that nobody attaches the frame
        // anew meanwhile.
        for page in self.pages(frame, 0..self.frame_bytes) {
            self.arena.reset(page);
        }
    }

    fn protect(
        &self,
        addr: DeviceAddr,
        bytes: u64,
        access: Option<Access>,
    ) -> Result<(), DeviceError> {
        self.alive()?;
        let offset = addr.0 % self.frame_bytes;
        let aligned = offset.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES);
        let space = self.space.read();
        let frame = space.frame_at(addr.0 / self.frame_bytes);
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= self.frame_bytes);
        let Some(frame) = frame.filter(|_| aligned && fits) else {
            let what = "the range to protect is not pages of an attached frame";
            return Err(DeviceError::Invalid { what, frame });
        };
        if access == Some(Access::Write) {
            // Before any page is writable: whoever takes the dirty marks must not skip the frame.
            self.written(frame).store(true, Ordering::SeqCst);
        }
        for page in self.pages(frame, offset..offset + bytes) {
            self.arena.protect(page, access);
        }
        Ok(())
    }

    fn take_dirty(&self, addr: DeviceAddr, bytes: u64) -> Result<Dirty, DeviceError> {
        self.alive()?;
        let mut runs: Vec<Range<u64>> = Vec::new();
        if bytes == 0 {
            return Ok(Dirty::Pages(runs));
        }
        let aligned = addr.0.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES);
        let Some(end) = addr.0.checked_add(bytes).filter(|_| aligned) else {
            let what = "the range to take dirty marks from is not pages of the address space";
            return Err(DeviceError::Invalid { what, frame: None });
        };
        // Exclusive: a page made writable between the flag's clearing and its own scan would be
        // skipped by the next taker.
        let space = self.space.write();
        let blocks = addr.0 / self.frame_bytes..=(end - 1) / self.frame_bytes;
        for (block, frame) in space.attached(blocks) {
            let base = block * self.frame_bytes;
            let inside = addr.0.max(base) - base..end.min(base + self.frame_bytes) - base;
            let whole = inside == (0..self.frame_bytes);
            if !self.written(frame).load(Ordering::SeqCst) {
                continue;
            }
            if whole {
                self.written(frame).store(false, Ordering::SeqCst);
            }
            let first = u64::from(frame.0) * self.frame_bytes / PAGE_BYTES;
            for page in self.pages(frame, inside) {
                if !self.arena.state(page).take_dirty() {
                    continue;
                }
                let at = base + (page - first) * PAGE_BYTES - addr.0;
                match runs.last_mut() {
                    Some(last) if last.end == at => last.end = at + PAGE_BYTES,
                    _ => runs.push(at..at + PAGE_BYTES),
                }
            }
        }
        Ok(Dirty::Pages(runs))
    }

    fn export_frame(&self, frame: FrameId) -> Result<ExportedFrame, DeviceError> {
        self.alive()?;
        self.check(FrameSpan { frame, offset: 0, len: self.frame_bytes })?;
        self.export(frame)
    }

    fn reassign_frame(&self, frame: FrameId, same_file: bool) -> Result<(), DeviceError> {
        self.alive()?;
        self.check(FrameSpan { frame, offset: 0, len: self.frame_bytes })?;
        self.renew(frame, same_file)
    }

    fn processors(&self) -> Option<&dyn Processors> {
        Some(self)
    }
}

impl Processors for SoftDevice {
    fn parallelism(&self) -> usize {
        self.workers.count()
    }

    fn memory(&self) -> &dyn Memory {
        self
    }

    fn launch(&self, groups: u64, body: &(dyn Fn(u64) + Sync)) -> Result<(), DeviceError> {
        self.alive()?;
        Counters::add(&self.counters.launches, 1);
        Counters::add(&self.counters.groups, groups);
        self.workers.launch(groups, body).map_err(|message| DeviceError::KernelFailed { message })
    }
}

#[cfg(all(test, not(loom)))]
#[path = "device_tests.rs"]
mod tests;
