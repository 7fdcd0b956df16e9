//! Forked children, other processes, and the ends of processes.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::common::*;
use pageferry::{After, Cache, CacheConfig, Error, PinMode};

/// In the parent: the test `name` once more, in a process of its own that is told `args`, with pipes.
/// In that process: `None`.
fn again(name: &str, args: &str) -> Option<Command> {
    if std::env::var_os("PAGEFERRY_CHILD").is_some() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([&format!("children::{name}"), "--exact", "--nocapture", "--test-threads=1"])
        .env("PAGEFERRY_CHILD", args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    Some(command)
}

fn told() -> String {
    std::env::var("PAGEFERRY_CHILD").unwrap()
}

/// A forked child's result, or the signal that ended it.
fn fork(body: impl FnOnce() -> i32) -> Result<i32, i32> {
    // SAFETY: the child makes calls that are refused before any lock, and exits.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = body();
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    if libc::WIFSIGNALED(status) {
        Err(libc::WTERMSIG(status))
    } else {
        Ok(libc::WEXITSTATUS(status))
    }
}

/// What a forked child does with its parent's cache is refused, whatever locks were held when it was
/// made, and changes nothing for the parent.
#[test]
fn a_forked_child_is_refused_and_harms_nothing() {
    within(60, || {
        let r = rig_with(8, CacheConfig::default());
        let f = r.file("a", 4 * FRAME);
        let m = f.map(0..FRAME, true).unwrap();
        let pin = f.pin(0..100, PinMode::Write).unwrap();
        pin.view().unwrap().write(0, &[7; 100]).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // The lock is held most of the time.
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        device_reads(&f, 2 * FRAME..2 * FRAME + 10);
                    }
                });
            }
            for _ in 0..50 {
                let forked = |e: &Error| matches!(e, Error::Forked) && e.kind() == "forked";
                let outcome = fork(|| {
                    let refusals = [
                        f.pin(FRAME..2 * FRAME, PinMode::Read).map(drop).is_err_and(|e| forked(&e)),
                        f.read_at(&mut [0], 0).is_err_and(|e| forked(&e)),
                        f.write_at(b"x", 0).is_err_and(|e| forked(&e)),
                        f.map(0..FRAME, false).map(drop).is_err_and(|e| forked(&e)),
                        m.read(0, &mut [0]).is_err_and(|e| forked(&e)),
                        f.set_len(0).is_err_and(|e| forked(&e)),
                        f.sync().is_err_and(|e| forked(&e)),
                        r.cache.flush().is_err_and(|e| forked(&e)),
                        r.cache.launch(1, |_| Ok(())).is_err_and(|e| forked(&e)),
                        r.cache.open(r.path("a")).map(drop).is_err_and(|e| forked(&e)),
                        r.cache.stats().counters().is_empty(),
                    ];
                    // A cache of its own serves it.
                    let own = rig_with(2, CacheConfig::default().flush_age(None));
                    let file = own.cache.open(r.path("a"));
                    let works = file.is_ok_and(|f| {
                        device_reads(&f, 3 * FRAME..3 * FRAME + 1)
                            == [pattern(4 * FRAME)[3 * FRAME as usize]]
                    });
                    let refused = refusals.iter().take_while(|r| **r).count();
                    if works && refused == refusals.len() { 0 } else { 1 + refused as i32 }
                });
                assert_eq!(outcome, Ok(0));
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(pin.release().unwrap(), 100);
        assert_eq!(m.load_u8(99).unwrap(), 7);
    });
}

/// A child that returns from `main` drops what it inherited: that does nothing, and does not hang.
#[test]
fn what_a_forked_child_drops_stays_the_parents() {
    within(60, || {
        let r = rig_with(8, CacheConfig::default());
        let f = r.file("a", FRAME);
        let m = f.map(0..FRAME, true).unwrap();
        let view = f.view(true).unwrap();
        r.cache.launch(2, |g| view.write(g * 10, &[1; 5])).unwrap();
        device_writes(&f, PAGE, &[7; 100], After::KeepAway);
        let pin = f.pin(2 * PAGE..3 * PAGE, PinMode::Write).unwrap();
        pin.view().unwrap().write(2 * PAGE, &[3; 9]).unwrap();
        let mut all = Some((view, pin, m, f, r));
        let before = std::fs::read(all.as_ref().unwrap().4.path("a")).unwrap();
        let outcome = fork(|| {
            let (view, pin, m, f, r) = all.take().unwrap();
            let Rig { cache, device, dir, server: _server } = r;
            // The directory is the parent's to remove.
            std::mem::forget(dir);
            drop((view, pin, m, f, cache, device));
            0
        });
        assert_eq!(outcome, Ok(0));
        let (view, pin, m, f, r) = all.unwrap();
        same(&r.on_disk("a"), &before, "the file after the child");
        assert_eq!(m.load_u8(PAGE as usize).unwrap(), 7);
        pin.release().unwrap();
        view.close().unwrap();
        drop(m);
        f.close().unwrap();
        let mut model = pattern(FRAME);
        model[..5].fill(1);
        model[10..15].fill(1);
        model[4096..4196].fill(7);
        model[8192..8201].fill(3);
        same(&r.on_disk("a"), &model, "the file");
    });
}

/// A process that maps the file and tells what it reads there.
struct Onlooker {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Onlooker {
    fn ask(&mut self, at: u64) -> String {
        writeln!(self.asks, "{at}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "it ended");
            // The runner's own words may stand before it.
            if let Some((_, answer)) = line.split_once("saw ") {
                return answer.trim().to_owned();
            }
        }
    }
}

/// Another process, which knows nothing of us, sees released bytes through a mapping that it had all
/// along, and by reading; its stores reach the next pin.
#[test]
fn another_process_sees_what_was_released() {
    let name = "another_process_sees_what_was_released";
    if std::env::var_os("PAGEFERRY_CHILD").is_some() {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(told()).unwrap();
        // SAFETY: a fresh shared mapping of the file's eight pages.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                8 * 4096,
                libc::PROT_READ,
                libc::MAP_SHARED,
                std::os::fd::AsRawFd::as_raw_fd(&file),
                0,
            )
        };
        assert_ne!(map, libc::MAP_FAILED);
        for line in std::io::stdin().lines() {
            let at: usize = line.unwrap().parse().unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at as u64).unwrap();
            let byte_at = map.cast::<u8>().wrapping_add(at);
            // SAFETY: inside the mapping, which the parent keeps inside the file.
            let mapped = unsafe { byte_at.read_volatile() };
            println!("saw {} {mapped}", byte[0]);
        }
        return;
    }
    let r = rig(4);
    let f = r.file("a", 8 * PAGE);
    let mut child = again(name, r.path("a").to_str().unwrap()).unwrap().spawn().unwrap();
    let (asks, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut onlooker = Onlooker { child, asks, answers: BufReader::new(answers) };
    assert_eq!(onlooker.ask(0), "0 0");
    for round in 1..50_u8 {
        let at = u64::from(round % 8) * PAGE;
        device_writes(&f, at, &[round; 4096], After::WriteBack);
        assert_eq!(onlooker.ask(at + 9), format!("{round} {round}"));
    }
    let Onlooker { mut child, asks, .. } = onlooker;
    drop(asks);
    assert!(child.wait().unwrap().success());
}

/// A process that replaces itself, with bytes released and bytes away: the file has the former, the
/// old ones in place of the latter, whole, and no descriptor is inherited.
#[test]
fn exec_keeps_what_was_released() {
    let name = "exec_keeps_what_was_released";
    if std::env::var_os("PAGEFERRY_CHILD").is_some() {
        let device = pageferry::soft::SoftDevice::new(Default::default()).unwrap();
        let cache = Cache::new(std::sync::Arc::new(device), CacheConfig::default().flush_age(None))
            .unwrap();
        let f = cache.open(told()).unwrap();
        let _m = f.map(0..8 * PAGE, true).unwrap();
        device_writes(&f, 0, &[7; 4096], After::WriteBack);
        device_writes(&f, PAGE, &[8; 4096], After::KeepAway);
        let error =
            Command::new("ls").args(["-l", "/proc/self/fd"]).env_remove("PAGEFERRY_CHILD").exec();
        panic!("{error}");
    }
    let r = rig(1);
    let mut model = pattern(8 * PAGE);
    std::fs::write(r.path("a"), &model).unwrap();
    let out = again(name, r.path("a").to_str().unwrap()).unwrap().output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let listing = String::from_utf8_lossy(&out.stdout);
    assert!(listing.contains("fd") || listing.contains("->"), "{listing}");
    assert!(!listing.contains(r.path("a").to_str().unwrap()), "inherited: {listing}");
    assert!(!listing.contains("userfaultfd") && !listing.contains("pagemap"), "{listing}");
    model[..4096].fill(7);
    same(&r.on_disk("a"), &model, "the file");
}

/// Adds to a counter on the device, so many times, each under a write pin of its own eight bytes.
fn count_on_device(file: &pageferry::File, at: u64, times: u64) {
    for n in 1..=times {
        let pin = file.pin(at..at + 8, PinMode::Write).unwrap();
        let mut word = [0; 8];
        pin.view().unwrap().read(at, &mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), n - 1, "somebody undid it");
        pin.view().unwrap().write(at, &n.to_le_bytes()).unwrap();
        pin.release().unwrap();
    }
}

/// Two processes, each with a cache of its own, work on one page: neither undoes what the other did.
#[test]
fn two_processes_with_caches_of_their_own_share_a_page() {
    let name = "two_processes_with_caches_of_their_own_share_a_page";
    if std::env::var_os("PAGEFERRY_CHILD").is_some() {
        let device = pageferry::soft::SoftDevice::new(Default::default()).unwrap();
        let cache = Cache::new(std::sync::Arc::new(device), CacheConfig::default()).unwrap();
        return count_on_device(&cache.open(told()).unwrap(), 104, 1000);
    }
    let r = rig(4);
    std::fs::write(r.path("a"), [0; 4096]).unwrap();
    let mut child = again(name, r.path("a").to_str().unwrap()).unwrap().spawn().unwrap();
    count_on_device(&r.cache.open(r.path("a")).unwrap(), 96, 1000);
    assert!(child.wait().unwrap().success());
    let end = r.on_disk("a");
    for at in [96, 104] {
        assert_eq!(u64::from_le_bytes(*end[at..].first_chunk().unwrap()), 1000, "at {at}");
    }
}
