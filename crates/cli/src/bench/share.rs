//! What it costs to use the cache of a daemon: to attach, to ask, to ask beside many others.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pageferry::serve::{Limits, Listener};
use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{Cache, CacheConfig, PinMode, Server, Wait};
use pageferry_linux::Socket;

use super::copies::spread;
use super::{Figure, Ground, rate, timed};
use crate::scratch::memory;

/// Clients at once.
const CLIENTS: usize = 64;
/// How long they ask, together.
const CROWD_TIME: Duration = Duration::from_secs(2);
/// Requests of one measurement of a round trip.
const CALLS: u32 = 2000;
/// Ranges in one request.
const RANGES: u64 = 64;
/// Frames that the daemon has more than the file: whole frames at both ends.
const SPARE_BYTES: u64 = 8 << 20;

/// A daemon in this process, with a file of which all is on its device.
struct Home {
    dir: tempfile::TempDir,
    file: PathBuf,
    data: Vec<u8>,
    _server: Server,
}

impl Home {
    fn new(ground: &Ground) -> anyhow::Result<Home> {
        let dir = tempfile::tempdir().context("making a directory")?;
        let file = dir.path().join("shared");
        let data = ground.file_at(&file)?;
        pageferry_linux::limits::raise_descriptor_limit().context("raising RLIMIT_NOFILE")?;
        let soft = SoftConfig {
            capacity_bytes: ground.bytes + SPARE_BYTES,
            exportable: true,
            ..SoftConfig::default()
        };
        let device = Arc::new(SoftDevice::new(soft)?);
        let listener = Listener::bind(dir.path().join("socket"), 0o600)?;
        let server = Server::start(device, CacheConfig::default(), Limits::default(), listener)?;
        Ok(Home { dir, file, data, _server: server })
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }
}

/// From nothing to the first byte of a file that is resident, by a client that pins all of it.
fn attach(home: &Home, bytes: u64) -> anyhow::Result<Duration> {
    let mut byte = [0];
    let took = timed(|| {
        let cache = Cache::connect(home.socket())?;
        let file = cache.open_read_only(&home.file)?;
        let pin = file.pin(0..bytes, PinMode::Read)?;
        pin.view()?.read(0, &mut byte)?;
        // What ends it is not part of it.
        std::mem::forget((pin, file, cache));
        Ok(())
    })?;
    ensure!(byte[0] == home.data[0], "the first byte is {}, not {}", byte[0], home.data[0]);
    Ok(took)
}

/// Attaching to what is resident: beside loading it, and to all of it beside a sixteenth.
pub(super) fn attached(ground: &Ground) -> anyhow::Result<Vec<Figure>> {
    let home = Home::new(ground)?;
    let owner = Cache::connect(home.socket())?;
    let file = owner.open_read_only(&home.file)?;
    let bytes = ground.bytes;
    // One of its own: who has the shared file open takes its proofs.
    let (twin, _) = ground.file()?;
    let plain = std::fs::File::open(twin.path()).context("opening the twin")?;
    let mut touched = memory(bytes, 1)?;
    let load = || {
        file.evict(0..bytes)?;
        timed(|| Ok(file.pin(0..bytes, PinMode::Read)?.release()?))
    };
    let floor = || timed(|| spread(&mut touched, |piece, at| plain.read_exact_at(piece, at)));
    let (load, floor) = ground.against(load, floor)?;
    drop(touched);
    let moved = owner.stats().get("fetched_bytes");
    let (all, part) = ground.against(|| attach(&home, bytes), || attach(&home, bytes / 16))?;
    let mib = bytes >> 20;
    ensure!(owner.stats().get("fetched_bytes") == moved, "attaching has moved bytes");
    Ok(vec![
        Figure {
            name: format!("load {mib} MiB by a daemon"),
            what: "page cache to frames of nobody's yet, beside pread into touched memory",
            ours: rate(bytes, load),
            floor: rate(bytes, floor),
            unit: "GiB/s",
            goal: Some(-0.9),
        },
        Figure {
            name: format!("attach {mib} MiB"),
            what: "connect, open, pin all, read a byte, beside loading it",
            ours: all * 1e3,
            floor: load * 1e3,
            unit: "ms",
            goal: None,
        },
        Figure {
            name: format!("attach {mib} MiB, again"),
            what: "the same, beside attaching to a sixteenth of it",
            ours: all * 1e3,
            floor: part * 1e3,
            unit: "ms",
            goal: Some(1.5),
        },
    ])
}

/// One request beside the bare round trip of a packet between two threads.
pub(super) fn asked(ground: &Ground) -> anyhow::Result<Vec<Figure>> {
    let home = Home::new(ground)?;
    let cache = Cache::connect(home.socket())?;
    let file = cache.open_read_only(&home.file)?;
    file.pin(0..ground.bytes, PinMode::Read)?.release()?;
    let (here, there) = Socket::pair().context("making a pair of sockets")?;
    let echo = std::thread::spawn(move || {
        let mut packet = [0; 256];
        while let Ok(pageferry_linux::Received::Packet(n)) =
            there.recv(&mut packet, &mut Vec::new(), 0)
        {
            if there.send(&packet[..n], &[]).is_err() {
                break;
            }
        }
    });
    let round_trip = || -> anyhow::Result<()> {
        let mut packet = [0; 256];
        here.send(&packet[..40], &[])?;
        here.recv(&mut packet, &mut Vec::new(), 0)?;
        Ok(())
    };
    let calls = |work: &dyn Fn() -> anyhow::Result<()>| -> anyhow::Result<Duration> {
        let started = Instant::now();
        for _ in 0..CALLS {
            work()?;
        }
        Ok(started.elapsed() / CALLS)
    };
    let length = || calls(&|| Ok(file.len().map(drop)?));
    let (asked, bare) = ground.against(length, || calls(&round_trip))?;
    let pin = || calls(&|| Ok(file.pin(0..4096, PinMode::Read)?.release().map(drop)?));
    let (pinned, _) = ground.against(pin, || calls(&round_trip))?;
    let step = (ground.bytes / RANGES).max(4096);
    let ranges: Vec<_> = (0..RANGES).map(|n| n * step..n * step + 4096).collect();
    let many = || {
        calls(&|| {
            drop(file.pin_ranges(&ranges, PinMode::Read, Wait::Block)?);
            Ok(())
        })
    };
    let many = ground.against(many, || calls(&round_trip))?.0;
    here.shutdown();
    let _ = echo.join();
    let figure = |name: &str, what, ours: f64, goal| Figure {
        name: name.into(),
        what,
        ours: ours * 1e6,
        floor: bare * 1e6,
        unit: "µs",
        goal,
    };
    Ok(vec![
        figure("request", "the file's length, beside a bare round trip", asked, None),
        figure("pin and release", "two requests, beside a bare round trip", pinned, None),
        figure(
            "pin of 64 ranges, each",
            "one request to pin, 64 to release, by 64",
            many / 64.0,
            None,
        ),
    ])
}

/// Many clients pin and release at random.
pub(super) fn crowd(ground: &Ground) -> anyhow::Result<Vec<Figure>> {
    let home = Home::new(ground)?;
    let owner = Cache::connect(home.socket())?;
    owner.open_read_only(&home.file)?.pin(0..ground.bytes, PinMode::Read)?.release()?;
    let (alone, _) = pins_of(&home, 1, ground.bytes)?;
    let (together, mut all) = pins_of(&home, CLIENTS, ground.bytes)?;
    all.sort_unstable();
    let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    let fewest = together.iter().min().copied().unwrap_or(0) as f64;
    let most = together.iter().max().copied().unwrap_or(1) as f64;
    ensure!(fewest > 0.0, "a client was starved");
    let sum = |counts: &[u64]| counts.iter().sum::<u64>() as f64 / CROWD_TIME.as_secs_f64();
    let figure = |name: &str, what, ours, floor, unit| Figure {
        name: name.into(),
        what,
        ours,
        floor,
        unit,
        goal: None,
    };
    Ok(vec![
        figure(
            "64 clients",
            "pins a second, beside those of one",
            sum(&together),
            sum(&alone),
            "1/s",
        ),
        figure(
            "64 clients, fairness",
            "pins of the slowest, beside the fastest",
            fewest,
            most,
            "pins",
        ),
        figure("64 clients, p50", "a pin's time, beside the slowest pin's", at(0.5), at(1.0), "µs"),
        figure(
            "64 clients, p99",
            "a pin's time, beside the slowest pin's",
            at(0.99),
            at(1.0),
            "µs",
        ),
    ])
}

/// How many pins each of some clients got in a while, and how long each pin took.
fn pins_of(home: &Home, clients: usize, bytes: u64) -> anyhow::Result<(Vec<u64>, Vec<Duration>)> {
    let over = AtomicBool::new(false);
    let client = |seed: u64| -> anyhow::Result<Vec<Duration>> {
        let cache = Cache::connect(home.socket())?;
        let file = cache.open_read_only(&home.file)?;
        let (mut state, mut times) = (seed | 1, Vec::new());
        while !over.load(Ordering::Relaxed) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 20) % (bytes / 4096) * 4096;
            let started = Instant::now();
            let pin = file.pin(at..at + 4096, PinMode::Read)?;
            times.push(started.elapsed());
            let mut byte = [0];
            pin.view()?.read(at, &mut byte)?;
            ensure!(byte[0] == home.data[at as usize], "byte {at} is wrong");
            pin.release()?;
        }
        Ok(times)
    };
    let (mut counts, mut all) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let running: Vec<_> = (0..clients as u64)
            .map(|n| (n, &client))
            .map(|(n, client)| scope.spawn(move || client(n.wrapping_mul(0x9E37_79B9_7F4A_7C15))))
            .collect();
        std::thread::sleep(CROWD_TIME);
        over.store(true, Ordering::Relaxed);
        for thread in running {
            let times = thread.join().map_err(|_| anyhow::anyhow!("a client failed"))??;
            counts.push(times.len() as u64);
            all.extend(times);
        }
        Ok(())
    })?;
    Ok((counts, all))
}
