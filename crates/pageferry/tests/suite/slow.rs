//! A device one of whose calls takes its time for one thread: what others do meanwhile.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::*;
use pageferry::device::*;
use pageferry::soft::SoftDevice;
use pageferry::{After, Cache, CacheConfig, Error, Guard, PinMode, Wait};

/// The software device, but that a call lasts longer for the thread named "slow", and that a fill
/// panics for the one named "clumsy", or, "panic", a drain a few times for those that guard files; and that for the
/// one named "held" it lasts until it may end.
struct Slow {
    inner: Arc<SoftDevice>,
    call: &'static str,
    falls: AtomicU32,
    hold: Hold,
}

/// How far the call is that a test holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    NotYet,
    Begun,
    MayEnd,
}

struct Hold(Mutex<Held>, Condvar);

impl Hold {
    fn set(&self, held: Held) {
        *self.0.lock().unwrap() = held;
        self.1.notify_all();
    }

    fn wait_for(&self, wanted: Held) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |held| *held != wanted).unwrap());
    }
}

impl Slow {
    fn dawdle(&self, call: &str) {
        if call == self.call && std::thread::current().name() == Some("slow") {
            std::thread::sleep(Duration::from_millis(200));
        }
        if call == self.call
            && std::thread::current().name() == Some("held")
            && *self.hold.0.lock().unwrap() == Held::NotYet
        {
            self.hold.set(Held::Begun);
            self.hold.wait_for(Held::MayEnd);
        }
    }
}

impl Device for Slow {
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
        if std::thread::current().name() == Some("clumsy") {
            panic!("a panic on purpose");
        }
        self.inner.fill(span, source)
    }
    fn drain(
        &self,
        span: FrameSpan,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), TransferError> {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        // The threads that bring bytes home for others, the first few times.
        let clumsy = self.call == "panic" && matches!(&*name, "pageferry-lease" | "pageferry-home");
        if clumsy && self.falls.fetch_add(1, Ordering::Relaxed) < 3 {
            panic!("a panic on purpose");
        }
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
        self.dawdle("detach");
        self.inner.detach(at);
    }
    fn protect(&self, at: DeviceAddr, bytes: u64, to: Option<Access>) -> Result<(), DeviceError> {
        if to.is_none() {
            self.dawdle("hide");
        }
        self.inner.protect(at, bytes, to)
    }
    fn take_dirty(&self, at: DeviceAddr, bytes: u64) -> Result<Dirty, DeviceError> {
        self.inner.take_dirty(at, bytes)
    }
    fn processors(&self) -> Option<&dyn Processors> {
        self.inner.processors()
    }
}

fn slow_rig(frames: u64, call: &'static str) -> (Rig, Cache) {
    guarded_rig(frames, call, Guard::Auto)
}

fn guarded_rig(frames: u64, call: &'static str, guard: Guard) -> (Rig, Cache) {
    let rig = rig(frames);
    let device = slow_device(&rig, call);
    let config = CacheConfig::default().flush_age(None).guard(guard);
    (rig, Cache::new(device, config).unwrap())
}

fn slow_device(rig: &Rig, call: &'static str) -> Arc<Slow> {
    let (falls, hold) = (AtomicU32::new(0), Hold(Mutex::new(Held::NotYet), Condvar::new()));
    Arc::new(Slow { inner: rig.device.clone(), call, falls, hold })
}

fn slowly<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let thread = std::thread::Builder::new().name("slow".into()).spawn(f).unwrap();
    // Time to reach the slow call; should it be later, the test only shows less.
    std::thread::sleep(Duration::from_millis(50));
    thread
}

#[test]
fn pages_that_grew_back_are_not_hidden_by_an_earlier_shrink() {
    within(20, || {
        let (rig, cache) = slow_rig(4, "hide");
        std::fs::write(rig.path("f"), pattern(8 * PAGE)).unwrap();
        let file = cache.open(rig.path("f")).unwrap();
        device_reads(&file, 0..PAGE);
        let shrink = slowly({
            let file = file.clone();
            move || file.set_len(0)
        });
        file.set_len(8 * PAGE).unwrap();
        assert_eq!(device_reads(&file, 0..PAGE), [0; 4096]);
        shrink.join().unwrap().unwrap();
        assert_eq!(device_reads(&file, 0..PAGE), [0; 4096]);
    });
}

#[test]
fn a_frame_that_is_being_hidden_is_not_given_away() {
    within(20, || {
        let (rig, cache) = slow_rig(1, "hide");
        for name in ["f", "g"] {
            std::fs::write(rig.path(name), pattern(8 * PAGE)).unwrap();
        }
        let (file, other) =
            (cache.open(rig.path("f")).unwrap(), cache.open(rig.path("g")).unwrap());
        device_reads(&file, 0..PAGE);
        let shrink = slowly(move || file.set_len(0));
        same(&device_reads(&other, 0..PAGE), &pattern(PAGE), "the other file");
        shrink.join().unwrap().unwrap();
    });
}

#[test]
fn a_file_is_not_closed_under_a_frame_that_is_being_taken() {
    within(20, || {
        let (rig, cache) = slow_rig(2, "detach");
        for (name, frames) in [("x", 1), ("y", 2), ("z", 1)] {
            std::fs::write(rig.path(name), pattern(frames * FRAME)).unwrap();
        }
        let (x, y) = (cache.open(rig.path("x")).unwrap(), cache.open(rig.path("y")).unwrap());
        device_reads(&x, 0..PAGE);
        device_reads(&y, 0..PAGE);
        let thief = slowly(move || y.pin(FRAME..FRAME + PAGE, PinMode::Read).map(drop));
        x.close().unwrap();
        // A new file gets the closed one's place.
        let z = cache.open(rig.path("z")).unwrap();
        same(&device_reads(&z, 0..PAGE), &pattern(PAGE), "the new file");
        thief.join().unwrap().unwrap();
        same(&device_reads(&z, 0..PAGE), &pattern(PAGE), "the new file again");
    });
}

#[test]
fn of_a_request_whose_thread_panicked_nothing_remains() {
    within(20, || {
        let (rig, cache) = slow_rig(2, "");
        std::fs::write(rig.path("f"), pattern(2 * FRAME)).unwrap();
        let file = cache.open(rig.path("f")).unwrap();
        let clumsy = std::thread::Builder::new().name("clumsy".into()).spawn({
            let file = file.clone();
            move || file.pin(0..PAGE, PinMode::Write).map(drop)
        });
        assert!(clumsy.unwrap().join().is_err());
        assert_eq!(cache.stats().get("live_pins"), Some(0));
        same(&device_reads(&file, 0..PAGE), &pattern(PAGE), "the page");
    });
}

/// Whoever waits for a guard's thread does not wait for ever because a device's code panicked there, and
/// gets what the device wrote.
#[test]
fn a_panic_in_a_thread_that_guards_is_tried_again() {
    within(60, || {
        for guard in [Guard::Lease, Guard::Fanotify] {
            let (rig, cache) = guarded_rig(2, "panic", guard);
            std::fs::write(rig.path("f"), pattern(2 * FRAME)).unwrap();
            let file = cache.open(rig.path("f")).unwrap();
            for byte in 1..3 {
                let pin = file.pin(0..PAGE, PinMode::Write).unwrap();
                pin.view().unwrap().write(0, &[byte; 4096]).unwrap();
                if let Err(why) = pin.release_with(After::KeepAway) {
                    return crate::skipped!("{why}");
                }
                let seen = std::fs::read(rig.path("f")).unwrap();
                same(&seen[..4096], &[byte; 4096], "an outsider");
            }
            assert_eq!(cache.stats().get("unguarded_openers"), Some(0));
        }
    });
}

/// A close takes as long as the device does; who opens the file again waits for it, and other files do not.
#[test]
fn a_close_that_takes_its_time_holds_up_no_other_file() {
    within(20, || {
        let rig = rig(4);
        let device = slow_device(&rig, "detach");
        let cache = Cache::new(device.clone(), CacheConfig::default().flush_age(None)).unwrap();
        for name in ["f", "g"] {
            std::fs::write(rig.path(name), pattern(PAGE)).unwrap();
        }
        let file = cache.open(rig.path("f")).unwrap();
        device_reads(&file, 0..PAGE);
        let held = std::thread::Builder::new().name("held".into());
        let closing = held.spawn(move || file.close()).unwrap();
        device.hold.wait_for(Held::Begun);
        let (path, same_cache) = (rig.path("f"), cache.clone());
        let again = std::thread::spawn(move || same_cache.open(path).unwrap());
        let other = cache.open(rig.path("g")).unwrap();
        same(&device_reads(&other, 0..PAGE), &pattern(PAGE), "the other file");
        other.close().unwrap();
        device.hold.set(Held::MayEnd);
        closing.join().unwrap().unwrap();
        let file = again.join().unwrap();
        same(&device_reads(&file, 0..PAGE), &pattern(PAGE), "the file, opened meanwhile");
        let twin = cache.open(rig.path("f")).unwrap();
        let _pin = twin.pin(0..PAGE, PinMode::Write).unwrap();
        let one =
            std::thread::spawn(move || file.pin_wait(0..PAGE, PinMode::Read, Wait::Try).map(drop));
        let refused = one.join().unwrap();
        assert!(matches!(refused, Err(Error::WouldBlock { .. })), "one file: {refused:?}");
    });
}
