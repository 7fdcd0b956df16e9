//! A device whose code panics while it works for a client.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::*;
use crate::raw::*;
use pageferry::device::*;
use pageferry::soft::SoftDevice;
use pageferry_wire::{Failure, Mode, Request};

/// The software device, but that copies panic while told to.
struct Clumsy {
    inner: Arc<SoftDevice>,
    fills: Arc<AtomicBool>,
    drains: Arc<AtomicBool>,
}

fn fall(told: &AtomicBool) {
    if told.load(Ordering::SeqCst) {
        panic!("a panic on purpose");
    }
}

impl Device for Clumsy {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }
    fn alloc_frame(&self) -> Result<FrameId, DeviceError> {
        self.inner.alloc_frame()
    }
    fn free_frame(&self, frame: FrameId) {
        self.inner.free_frame(frame);
    }
    fn frames_in_use(&self) -> u64 {
        self.inner.frames_in_use()
    }
    fn fill(
        &self,
        span: FrameSpan,
        source: &mut dyn FnMut(&mut [u8]) -> io::Result<()>,
    ) -> Result<(), TransferError> {
        fall(&self.fills);
        self.inner.fill(span, source)
    }
    fn drain(
        &self,
        span: FrameSpan,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), TransferError> {
        fall(&self.drains);
        self.inner.drain(span, sink)
    }
    fn zero(&self, span: FrameSpan) -> Result<(), DeviceError> {
        self.inner.zero(span)
    }
    fn reserve_region(&self) -> Result<DeviceAddr, DeviceError> {
        self.inner.reserve_region()
    }
    fn release_region(&self, region: DeviceAddr) {
        self.inner.release_region(region);
    }
    fn attach(&self, at: DeviceAddr, frame: FrameId) -> Result<(), DeviceError> {
        self.inner.attach(at, frame)
    }
    fn detach(&self, at: DeviceAddr) {
        self.inner.detach(at);
    }
    fn protect(&self, at: DeviceAddr, bytes: u64, to: Option<Access>) -> Result<(), DeviceError> {
        self.inner.protect(at, bytes, to)
    }
    fn take_dirty(&self, at: DeviceAddr, bytes: u64) -> Result<Dirty, DeviceError> {
        self.inner.take_dirty(at, bytes)
    }
    fn export_frame(&self, frame: FrameId) -> Result<ExportedFrame, DeviceError> {
        self.inner.export_frame(frame)
    }
    fn reassign_frame(&self, frame: FrameId, same_file: bool) -> Result<(), DeviceError> {
        self.inner.reassign_frame(frame, same_file)
    }
    fn processors(&self) -> Option<&dyn Processors> {
        self.inner.processors()
    }
}

/// A daemon with room for two frames' pins of a user, and what makes its device's fills and drains panic.
pub fn clumsy() -> (Daemon, Arc<AtomicBool>, Arc<AtomicBool>) {
    let (fills, drains) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
    let (f, d) = (fills.clone(), drains.clone());
    let limit = |limits: &mut pageferry::serve::Limits| {
        limits.pinned_bytes = 2 * FRAME;
        limits.pinned_bytes_per_user = 2 * FRAME;
        limits.pins = 2;
    };
    let made = |inner| -> Arc<dyn Device> { Arc::new(Clumsy { inner, fills: f, drains: d }) };
    (daemon_of(16, 0o600, limit, made), fills, drains)
}

/// Neither the session's limits nor its user's lose what was counted for it.
#[test]
fn a_pin_that_panics_does_not_count() {
    alone(60, || {
        let (d, fills, _) = clumsy();
        let path = d.file("a");
        let mut raw = d.client();
        let file = raw.open(&path, false);
        fills.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            let refused = raw.pin(file, 0..2 * FRAME, Mode::Read);
            assert!(matches!(refused, Err(Failure::KernelFailed(_))), "{refused:?}");
        }
        fills.store(false, Ordering::SeqCst);
        for _ in 0..2 {
            raw.pin(file, 0..FRAME, Mode::Read).unwrap();
        }
        drop(raw);
        d.deserted();
        d.ends_clean();
    });
}

/// A client dies with two stored pins, which cannot be written back for a panic; so does one that releases its
/// own. What else they held is given back.
#[test]
fn a_panic_while_a_session_ends_keeps_nothing_of_it() {
    alone(60, || {
        let (d, _, drains) = clumsy();
        let path = d.file("a");
        for releases in [true, false] {
            let mut raw = d.client();
            let file = raw.open(&path, true);
            let ranges = [0..FRAME, FRAME..2 * FRAME];
            let pins = ranges.map(|range| raw.pin(file, range, Mode::Write).unwrap());
            for (at, pin) in [0, FRAME].into_iter().zip(pins) {
                raw.ask(Request::Store { pin, offset: at, bytes: vec![7; 10] }).unwrap();
            }
            drains.store(true, Ordering::SeqCst);
            if releases {
                for pin in pins {
                    raw.release(pin).unwrap_err();
                }
            }
            drop(raw);
            d.deserted();
            drains.store(false, Ordering::SeqCst);
        }
        let mut raw = d.client();
        let file = raw.open(&path, true);
        raw.pin(file, 0..2 * FRAME, Mode::Write).unwrap();
        drop(raw);
        d.deserted();
        let mut stored = pattern(FILE);
        [0, FRAME as usize].iter().for_each(|at| stored[*at..][..10].fill(7));
        d.server().cache().flush().unwrap();
        same(&std::fs::read(&path).unwrap(), &stored, "the file");
        d.ends_clean();
    });
}
