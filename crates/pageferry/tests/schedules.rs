//! The library's threads under shuttle: every lock is a point at which its scheduler may switch.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test -p pageferry --test schedules`; `SCHEDULES=100000` for long.
//! Real files, the real engine and the software device; no mappings, whose threads the kernel wakes.
#![cfg(shuttle)]

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use pageferry::soft::{FailPoint, SoftConfig, SoftDevice};
use pageferry::{After, Cache, CacheConfig, Error, File, PinMode, Wait};
use shuttle::thread;

const PAGE: u64 = 4096;
const FRAME: u64 = 64 << 10;

/// Runs a test under so many schedules; it gets a directory of its own.
fn schedules(test: impl Fn(&PathBuf) + Send + Sync + 'static) {
    let count = std::env::var("SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = dir.path().to_owned();
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    let scheduler = shuttle::scheduler::RandomScheduler::new(count);
    shuttle::Runner::new(scheduler, config).run(move || test(&path));
}

struct Rig {
    device: Arc<SoftDevice>,
    cache: Cache,
    path: PathBuf,
}

fn rig(dir: &PathBuf, frames: u64, bytes: u64) -> Rig {
    let config =
        SoftConfig { frame_bytes: FRAME, capacity_bytes: frames * FRAME, ..SoftConfig::default() };
    let device = Arc::new(SoftDevice::new(config).unwrap());
    let config = CacheConfig::default().flush_age(None).copy_threads(2);
    let cache = Cache::new(device.clone(), config).unwrap();
    let path = dir.join("file");
    std::fs::write(&path, vec![0; bytes as usize]).unwrap();
    Rig { device, cache, path }
}

impl Rig {
    fn file(&self) -> File {
        self.cache.open(&self.path).unwrap()
    }

    fn counter(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        std::fs::File::open(&self.path).unwrap().read_exact_at(&mut bytes, at).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn end(self) {
        use pageferry::device::Device;
        drop(self.cache);
        assert_eq!(self.device.frames_in_use(), 0, "frames are left");
    }
}

/// Adds one to a counter on the device.
fn count(file: &File, at: u64, after: After) -> Result<(), Error> {
    let pin = file.pin(at..at + 8, PinMode::Write)?;
    let mut bytes = [0; 8];
    pin.view()?.read(at, &mut bytes)?;
    let next = u64::from_le_bytes(bytes) + 1;
    pin.view()?.write(at, &next.to_le_bytes())?;
    pin.release_with(after)?;
    Ok(())
}

#[test]
fn write_pins_exclude_one_another_and_lose_nothing() {
    schedules(|dir| {
        let rig = rig(dir, 1, 2 * FRAME);
        let places = [0, 8, PAGE - 8, FRAME];
        let threads: Vec<_> = (0..3u64)
            .map(|who| {
                let file = rig.file();
                thread::spawn(move || {
                    for turn in 0..4 {
                        let after =
                            if (who + turn) % 2 == 0 { After::KeepAway } else { After::WriteBack };
                        count(&file, places[(who + turn) as usize % 4], after).unwrap();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        rig.file().flush(0..2 * FRAME).unwrap();
        let sum: u64 = places.iter().map(|at| rig.counter(*at)).sum();
        assert_eq!(sum, 12);
        rig.end();
    });
}

#[test]
fn eviction_flush_and_change_beside_pins_lose_nothing() {
    schedules(|dir| {
        let rig = rig(dir, 1, 2 * FRAME);
        let spawn = |work: Box<dyn Fn(&File) + Send>| {
            let file = rig.file();
            thread::spawn(move || work(&file))
        };
        let counting = |at| -> Box<dyn Fn(&File) + Send> {
            Box::new(move |file| {
                (0..3).for_each(|_| count(file, at, After::KeepAway).unwrap());
            })
        };
        let threads = [
            spawn(counting(0)),
            spawn(counting(FRAME)),
            spawn(Box::new(|file| {
                file.evict(0..2 * FRAME).unwrap();
                file.write_at(&[7; 8], 100).unwrap();
                file.flush(0..FRAME).unwrap();
            })),
            spawn(Box::new(|file| {
                let mut seen = 0;
                for _ in 0..3 {
                    let pin = file.pin_wait(0..8, PinMode::Read, Wait::Try);
                    let Ok(pin) = pin else { continue };
                    let mut bytes = [0; 8];
                    pin.view().unwrap().read(0, &mut bytes).unwrap();
                    let now = u64::from_le_bytes(bytes);
                    assert!(now >= seen, "{now} after {seen}");
                    seen = now;
                }
            })),
        ];
        threads.into_iter().for_each(|t| t.join().unwrap());
        rig.file().flush(0..2 * FRAME).unwrap();
        assert_eq!(
            (rig.counter(0), rig.counter(FRAME), rig.counter(100)),
            (3, 3, 0x0707_0707_0707_0707)
        );
        rig.end();
    });
}

#[test]
fn truncation_beside_pins_ends_and_leaks_nothing() {
    schedules(|dir| {
        let rig = rig(dir, 2, 2 * FRAME);
        let (writer, cutter, reader) = (rig.file(), rig.file(), rig.file());
        let threads = [
            thread::spawn(move || {
                for _ in 0..2 {
                    match count(&writer, FRAME + PAGE, After::WriteBack) {
                        Ok(()) | Err(Error::PastEof { .. } | Error::FileShrunk { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }),
            thread::spawn(move || {
                cutter.set_len(FRAME).unwrap();
                cutter.set_len(2 * FRAME).unwrap();
            }),
            thread::spawn(move || {
                for _ in 0..2 {
                    match reader.pin(FRAME..2 * FRAME, PinMode::Read) {
                        Ok(pin) => pin.release().unwrap(),
                        Err(Error::PastEof { .. }) => 0,
                        Err(error) => panic!("{error}"),
                    };
                }
            }),
        ];
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert!(rig.counter(FRAME + PAGE) <= 2);
        rig.end();
    });
}

#[test]
fn failures_beside_one_another_lose_nothing_that_was_released() {
    schedules(|dir| {
        let rig = rig(dir, 1, 2 * FRAME);
        rig.device.arm(FailPoint::CopyOut, 1);
        rig.device.arm(FailPoint::CopyIn, 1);
        let threads: Vec<_> = (0..2u64)
            .map(|who| {
                let file = rig.file();
                thread::spawn(move || {
                    let mut done = 0;
                    while done < 2 {
                        match count(&file, who * FRAME, After::KeepAway) {
                            Ok(()) => done += 1,
                            Err(Error::Device(_)) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        let file = rig.file();
        // The failure may have waited for this.
        file.flush(0..2 * FRAME).or_else(|_| file.flush(0..2 * FRAME)).unwrap();
        assert_eq!((rig.counter(0), rig.counter(FRAME)), (2, 2));
        drop(file);
        rig.end();
    });
}

#[test]
fn views_on_demand_share_a_frame_and_lose_nothing() {
    schedules(|dir| {
        let rig = rig(dir, 1, 2 * FRAME);
        let threads: Vec<_> = (0..2u64)
            .map(|who| {
                let file = rig.file();
                thread::spawn(move || {
                    let view = file.view(true).unwrap();
                    for at in [who * 8, FRAME + who * 8] {
                        view.write(at, &(who + 5).to_le_bytes()).unwrap();
                    }
                    let mut bytes = [0; 8];
                    view.read(who * 8, &mut bytes).unwrap();
                    assert_eq!(u64::from_le_bytes(bytes), who + 5);
                    view.close().unwrap();
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        for at in [0, FRAME] {
            assert_eq!((rig.counter(at), rig.counter(at + 8)), (5, 6));
        }
        rig.end();
    });
}

#[test]
fn a_file_closed_and_opened_at_once_is_the_same_file() {
    schedules(|dir| {
        let rig = rig(dir, 1, 2 * FRAME);
        let rig = Arc::new(rig);
        let threads: Vec<_> = (0..2u64)
            .map(|who| {
                let rig = Arc::clone(&rig);
                thread::spawn(move || {
                    for _ in 0..2 {
                        let file = rig.file();
                        count(&file, who * FRAME, After::KeepAway).unwrap();
                        file.close().unwrap();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!((rig.counter(0), rig.counter(FRAME)), (2, 2));
        Arc::into_inner(rig).unwrap().end();
    });
}

/// First opens at once, by those that count under write pins: these exclude one another only in one file.
#[test]
fn first_opens_at_once_are_of_one_file() {
    schedules(|dir| {
        let rig = Arc::new(rig(dir, 1, 2 * FRAME));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let rig = Arc::clone(&rig);
                thread::spawn(move || {
                    let file = rig.file();
                    count(&file, 0, After::WriteBack).unwrap();
                    // The others may still have it open.
                    file.close().unwrap();
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(rig.counter(0), 3);
        Arc::into_inner(rig).unwrap().end();
    });
}
