//! A daemon for long: clients come, go and are killed, files change under them, memory is short. While it runs no
//! page that a client sees goes back to an older version; afterwards every page is whole and right, and the daemon
//! has no pin, frame, session, descriptor or thread left that it had not at first.
//!
//! A minute unless `PAGEFERRY_SOAK_SECONDS` says otherwise; an hour:
//! `PAGEFERRY_SOAK_SECONDS=3600 cargo test --release -p pageferry --test soak -- --nocapture`.

use std::fs::File as Plain;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pageferry::serve::{Limits, Listener};
use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{After, Cache, CacheConfig, Error, File, PinMode, Server, Wait};

/// Tells a process of ours what it is.
const ROLE: &str = "PAGEFERRY_SOAK_ROLE";
const DIR: &str = "PAGEFERRY_SOAK_DIR";
const PAGE: u64 = 4096;
const WORDS: usize = PAGE as usize / 8;
const FRAME: u64 = 64 << 10;
/// Frames of the device: less than the files.
const FRAMES: u64 = 24;
const FILES: u64 = 5;
/// Pages of a file: the first half others write, the second half the clients' kernels.
const PAGES: u64 = 128;
const CLIENTS: usize = 6;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % below
    }
}

fn file_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("file{number}"))
}

/// A page of one version, all words alike.
fn page(number: u64, version: u64) -> Vec<u8> {
    (number << 40 | version).to_le_bytes().repeat(WORDS)
}

/// The versions of a page's words; each must be of this page.
fn versions(number: u64, bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(move |word| {
        let word = u64::from_le_bytes(word.try_into().unwrap());
        assert_eq!(word >> 40, number, "a word of another page");
        word & ((1 << 40) - 1)
    })
}

#[test]
fn a_daemon_outlives_its_clients_and_keeps_nothing_of_them() {
    match std::env::var(ROLE).as_deref() {
        Ok("daemon") => return daemon(),
        Ok("client") => return client(),
        _ => {}
    }
    let seconds = std::env::var("PAGEFERRY_SOAK_SECONDS").map_or(60, |s| s.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    for number in 0..FILES {
        let bytes: Vec<u8> = (0..PAGES).flat_map(|n| page(n, 1)).collect();
        std::fs::write(file_path(dir.path(), number), bytes).unwrap();
    }
    let mut daemon = Process::start("daemon", dir.path());
    // The test runner says something, too.
    let mut said = [0];
    while said != *b"!" {
        daemon.0.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    }
    let cache = Cache::connect(dir.path().join("socket")).unwrap();
    warm(&cache, dir.path());
    let at_first = daemon.holds();

    let over = Arc::new(AtomicBool::new(false));
    let written = {
        let (dir, over) = (dir.path().to_owned(), Arc::clone(&over));
        std::thread::spawn(move || outsider(&dir, &over))
    };
    let tally = crowd(dir.path(), Duration::from_secs(seconds));
    over.store(true, Ordering::SeqCst);
    let written = written.join().unwrap();
    println!("{tally}, {} pages written by others", written.iter().sum::<u64>());

    // Nothing is left of the clients.
    let left = |name| cache.stats().get(name).unwrap();
    until("sessions end", || cache.sessions().unwrap().len() == 1);
    assert_eq!(left("live_pins"), 0);
    check(&cache, dir.path(), &written);
    for number in 0..FILES {
        let file = cache.open(file_path(dir.path(), number)).unwrap();
        file.evict(0..u64::MAX).unwrap();
    }
    until("frames are given back", || left("used_bytes") == 0);
    warm(&cache, dir.path());
    println!("descriptors and threads: {at_first:?} at first, {:?} now", daemon.holds());
    until("descriptors and threads are as at first", || {
        daemon.holds().iter().zip(at_first).all(|(now, then)| *now <= then)
    });
    drop(cache);
    drop(daemon.0.stdin.take());
    assert!(daemon.0.wait().unwrap().success(), "the daemon ends well");
}

/// A process of ours, which ends with this one.
struct Process(Child);

impl Process {
    fn start(role: &str, dir: &Path) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_daemon_outlives_its_clients_and_keeps_nothing_of_them"]);
        command.args(["--nocapture", "--quiet"]).env(ROLE, role).env(DIR, dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Process(command.spawn().unwrap())
    }

    /// Descriptors and threads.
    fn holds(&self) -> [usize; 2] {
        ["fd", "task"]
            .map(|what| std::fs::read_dir(format!("/proc/{}/{what}", self.0.id())).unwrap().count())
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.0.id() as i32, signal) };
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What any use of the daemon leaves behind for good: the memory of each frame, and what guards bytes that are away.
fn warm(cache: &Cache, dir: &Path) {
    let kept = cache.open(file_path(dir, 0)).unwrap();
    let last = (PAGES - 1) * PAGE;
    let pin = kept.pin(last..last + PAGE, PinMode::Write).unwrap();
    let mut bytes = vec![0; PAGE as usize];
    pin.view().unwrap().read(last, &mut bytes).unwrap();
    pin.view().unwrap().write(last, &bytes).unwrap();
    // Where nothing guards it, it has gone home.
    let _ = pin.release_with(After::KeepAway);
    let filling = FRAMES * FRAME / (PAGES * PAGE);
    let open = |n| cache.open_read_only(file_path(dir, n)).unwrap();
    let files: Vec<File> = (0..filling).map(open).collect();
    let pin = |file: &File| file.pin(0..PAGES * PAGE, PinMode::Read).unwrap();
    let pins: Vec<_> = files.iter().map(pin).collect();
    drop(pins);
    for file in files.iter().chain([&kept]) {
        file.evict(0..u64::MAX).unwrap();
    }
}

fn daemon() {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let soft = SoftConfig {
        frame_bytes: FRAME,
        capacity_bytes: FRAMES * FRAME,
        exportable: true,
        ..SoftConfig::default()
    };
    let device = Arc::new(SoftDevice::new(soft).unwrap());
    let config = CacheConfig::default().flush_age(Some(Duration::from_millis(200)));
    let listener = Listener::bind(dir.join("socket"), 0o600).unwrap();
    let server = Server::start(device, config, Limits::default(), listener).unwrap();
    std::io::stdout().write_all(b"!").unwrap();
    std::io::stdout().flush().unwrap();
    // Until the parent closes it.
    let _ = std::io::stdin().read(&mut [0]);
    server.stop().unwrap();
}

/// Writes pages of the files' first halves by system calls; tells the last version of each.
fn outsider(dir: &Path, over: &AtomicBool) -> Vec<u64> {
    let open = |n| Plain::options().write(true).open(file_path(dir, n)).unwrap();
    let mut dice = Dice(u64::from(std::process::id()));
    let mut last = vec![1; (FILES * PAGES) as usize];
    while !over.load(Ordering::SeqCst) {
        let (number, at) = (dice.roll(FILES), dice.roll(PAGES / 2));
        let version = &mut last[(number * PAGES + at) as usize];
        *version += 1;
        // Opened anew: between its visits the file is the daemon's alone.
        open(number).write_all_at(&page(at, *version), at * PAGE).unwrap();
        std::thread::sleep(Duration::from_millis(dice.roll(8)));
    }
    last
}

/// Keeps clients running, of which each ends in one way or another.
fn crowd(dir: &Path, time: Duration) -> String {
    let since = Instant::now();
    let mut dice = Dice(u64::from(std::process::id()) + 7);
    let mut running: Vec<Process> = Vec::new();
    let (mut killed, mut ended, mut stopped) = (0, 0, 0);
    while since.elapsed() < time {
        while running.len() < CLIENTS {
            running.push(Process::start("client", dir));
        }
        std::thread::sleep(Duration::from_millis(dice.roll(60)));
        let n = dice.roll(running.len() as u64) as usize;
        match dice.roll(8) {
            0..3 => {
                drop(running.swap_remove(n));
                killed += 1;
            }
            3 => {
                running[n].signal(libc::SIGSTOP);
                std::thread::sleep(Duration::from_millis(dice.roll(100)));
                running[n].signal(libc::SIGCONT);
                stopped += 1;
            }
            _ => {
                let mut leaves = running.swap_remove(n);
                drop(leaves.0.stdin.take());
                let status = leaves.0.wait().unwrap();
                let mut said = String::new();
                let _ = leaves.0.stdout.take().unwrap().read_to_string(&mut said);
                assert!(status.success(), "a client failed: {said}");
                ended += 1;
            }
        }
    }
    format!("{killed} clients killed, {stopped} stopped for a while, {ended} ended")
}

/// A client: until its parent closes its input.
fn client() {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        told.store(true, Ordering::SeqCst);
    });
    let cache = Cache::connect(dir.join("socket")).unwrap();
    let open = |n| cache.open(file_path(&dir, n)).unwrap();
    let files: Vec<File> = (0..FILES).map(open).collect();
    let mut dice = Dice(u64::from(std::process::id()));
    let mut seen = vec![0; (FILES * PAGES) as usize];
    while !over.load(Ordering::SeqCst) {
        let (number, at) = (dice.roll(FILES), dice.roll(PAGES));
        let file = &files[number as usize];
        let seen = &mut seen[(number * PAGES + at) as usize];
        let stores = at >= PAGES / 2 && dice.roll(2) == 0;
        let mode = if stores { PinMode::Write } else { PinMode::Read };
        let wait = Wait::Timeout(Duration::from_millis(500));
        let pin = match file.pin_wait(at * PAGE..(at + 1) * PAGE, mode, wait) {
            Ok(pin) => pin,
            // Others hold it, or everything.
            Err(Error::TimedOut { .. } | Error::DeviceFull { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        let view = pin.view().unwrap();
        let mut bytes = vec![0; PAGE as usize];
        view.read(at * PAGE, &mut bytes).unwrap();
        let oldest = versions(at, &bytes).min().unwrap();
        assert!(oldest >= *seen, "page {at} of {number}: {oldest} after {}", *seen);
        *seen = oldest;
        if stores {
            view.write(at * PAGE, &page(at, oldest + 1)).unwrap();
            *seen += 1;
        }
        drop(view);
        let after = if dice.roll(3) == 0 { After::KeepAway } else { After::WriteBack };
        match pin.release_with(after) {
            Ok(_) | Err(Error::Unguarded { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Every page is whole, what others wrote last is there, and the device sees the same.
fn check(cache: &Cache, dir: &Path, written: &[u64]) {
    cache.flush().unwrap();
    for number in 0..FILES {
        let file = cache.open(file_path(dir, number)).unwrap();
        file.flush(0..u64::MAX).unwrap();
        let bytes = std::fs::read(file_path(dir, number)).unwrap();
        for at in 0..PAGES {
            let range = (at * PAGE) as usize..((at + 1) * PAGE) as usize;
            let all: Vec<u64> = versions(at, &bytes[range.clone()]).collect();
            assert!(all.iter().all(|v| *v == all[0]), "page {at} of {number} is a mixture");
            if at < PAGES / 2 {
                assert_eq!(all[0], written[(number * PAGES + at) as usize], "page {at}");
            }
            let pin = file.pin(at * PAGE..(at + 1) * PAGE, PinMode::Read).unwrap();
            let mut device = vec![0; PAGE as usize];
            pin.view().unwrap().read(at * PAGE, &mut device).unwrap();
            assert!(device == bytes[range], "the device sees page {at} of {number} otherwise");
        }
    }
}
