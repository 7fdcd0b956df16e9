//! A daemon that is killed at every step of the protocol, before a message has come and after; the client is the
//! library.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::children::{Player, heard, play, say};
use crate::common::*;
use crate::raw::*;
use crate::relay::{Moment, Relay};
use pageferry::serve::{Limits, Listener};
use pageferry::{After, Cache, CacheConfig, Error, File, PinMode, Server};

/// What is stored under one pin: two runs in different frames.
const RUNS: [std::ops::Range<u64>; 2] = [4096..8192, FRAME + 100..FRAME + 300];
const STORED: u8 = 0xC7;
/// What is written by a call.
const CHANGED: u64 = 3 * FRAME;
const WRITTEN: u8 = 0x5A;
/// What is stored and kept away, until somebody touches it.
const AWAY: std::ops::Range<u64> = 5 * 4096..6 * 4096;
const KEPT: u8 = 0x33;

/// Serves until it is told to stop, or killed.
pub fn serve(socket: &str) {
    let listener = Listener::bind(socket, 0o600).unwrap();
    let config = CacheConfig::default().flush_age(None);
    let device = Arc::new(device(16));
    let server = Server::start(device, config, Limits::default(), listener).unwrap();
    say("serves");
    heard();
    server.stop().unwrap();
}

fn start(socket: &Path) -> Player {
    let mut daemon = play("serve", &[socket.to_str().unwrap()], |_| {});
    daemon.must_say("serves");
    daemon
}

/// A client, as far as it came.
struct Client {
    path: PathBuf,
    cache: Option<Cache>,
    /// Changes that were reported done, in order.
    done: usize,
}

impl Client {
    fn plays(&mut self, socket: &Path) -> Result<(), Error> {
        let cache = self.cache.insert(Cache::connect(socket)?).clone();
        let file = cache.open(&self.path)?;
        let map = file.map(0..FILE, true)?;
        let mut buf = [0; 16];
        let pin = file.pin(0..FILE, PinMode::Read)?;
        pin.view()?.read(FRAME, &mut buf)?;
        same(&buf, &pattern(FILE)[FRAME as usize..][..16], "under a pin for reading");
        pin.release()?;
        let pin = file.pin(0..2 * FRAME, PinMode::Write)?;
        for run in RUNS {
            pin.view()?.write(run.start, &vec![STORED; (run.end - run.start) as usize])?;
        }
        pin.release()?;
        self.done = 1;
        file.write_at(&[WRITTEN; 100], CHANGED)?;
        self.done = 2;
        keep_away(&file)?;
        map.read(AWAY.start as usize, &mut buf)?;
        assert_eq!(buf, [KEPT; 16], "what was kept away");
        self.done = 3;
        file.flush(0..FILE)?;
        map.unmap()?;
        file.close()
    }

    /// After a failure: everything says so, at once, and nothing hangs.
    fn has_lost_its_daemon(&self) {
        let Some(cache) = &self.cache else { return };
        let again = cache.open(&self.path).map(drop).unwrap_err();
        assert!(matches!(again, Error::Disconnected { .. }), "{again}");
    }
}

fn keep_away(file: &File) -> Result<(), Error> {
    let pin = file.pin(AWAY, PinMode::Overwrite)?;
    pin.view()?.write(AWAY.start, &[KEPT; 4096])?;
    match pin.release_with(After::KeepAway) {
        // It went home.
        Err(Error::Unguarded { .. }) => Ok(()),
        other => other.map(drop),
    }
}

/// The file with some of what is stored under the pin.
fn stored(runs: &[&std::ops::Range<u64>]) -> Vec<u8> {
    let mut bytes = pattern(FILE);
    runs.iter().for_each(|run| bytes[run.start as usize..run.end as usize].fill(STORED));
    bytes
}

/// The file after so many of the changes.
fn after(changes: usize) -> Vec<u8> {
    let mut bytes = if changes > 0 { stored(&[&RUNS[0], &RUNS[1]]) } else { pattern(FILE) };
    if changes > 1 {
        bytes[CHANGED as usize..][..100].fill(WRITTEN);
    }
    if changes > 2 {
        bytes[AWAY.start as usize..AWAY.end as usize].fill(KEPT);
    }
    bytes
}

/// Plays the script with a daemon that is killed at a packet; 0: it is not. Tells how many packets there were, and
/// whether the client came to its end all the same.
fn play_until(dir: &Path, dies_at: usize, when: Moment) -> (usize, bool) {
    let (back, front, path) = (dir.join("back"), dir.join("front"), dir.join("file"));
    std::fs::write(&path, pattern(FILE)).unwrap();
    let daemon = Arc::new(Mutex::new(start(&back)));
    let killed = Arc::clone(&daemon);
    let watch = move |number, moment| {
        let dies = (number, moment) == (dies_at, when);
        if dies {
            killed.lock().unwrap().kill();
        }
        !dies
    };
    let relay = Relay::start(&front, &back, Box::new(watch));
    let mut client = Client { path, cache: None, done: 0 };
    let outcome = client.plays(&front);
    let packets = relay.packets();
    let at = format!(
        "dead {} packet {dies_at}",
        if when == Moment::Before { "before" } else { "after" }
    );
    match &outcome {
        // Unmapping and closing need no daemon.
        Ok(()) => assert_eq!(client.done, 3, "{at}"),
        Err(Error::Disconnected { .. }) if dies_at > 0 => client.has_lost_its_daemon(),
        other => panic!("{at} of {packets}: {other:?}"),
    }
    let found = std::fs::read(&client.path).unwrap();
    let right = (client.done..=3.min(client.done + 1)).any(|changes| found == after(changes));
    // Killed between two writes of one release.
    let in_part = client.done == 0 && RUNS.iter().any(|run| found == stored(&[run]));
    assert!(
        right || in_part,
        "{at}: the file is a mixture, or has lost what was done: {}",
        client.done
    );
    drop((client, relay));
    if dies_at > 0 {
        // Another one serves, from the file.
        let (mut next, path) = (start(&back), dir.join("file"));
        let cache = Cache::connect(&back).unwrap();
        let file = cache.open(path).unwrap();
        let mut bytes = vec![0; FILE as usize];
        let pin = file.pin(0..FILE, PinMode::Read).unwrap();
        pin.view().unwrap().read(0, &mut bytes).unwrap();
        same(&bytes, &found, "from another daemon");
        drop((pin, file, cache));
        assert!(next.ends().success());
    } else {
        assert!(daemon.lock().unwrap().ends().success());
    }
    (packets, outcome.is_ok())
}

#[test]
fn a_daemon_may_be_killed_at_every_step() {
    alone(600, || {
        let dir = tempfile::tempdir().unwrap();
        let (packets, _) = play_until(dir.path(), 0, Moment::Before);
        let mut cut_short = 0;
        let (open, mapped) = (descriptors(), windows());
        for packet in 1..=packets {
            for when in [Moment::Before, Moment::After] {
                let (_, whole) = play_until(dir.path(), packet, when);
                cut_short += usize::from(!whole);
                until("all descriptors closed", || descriptors() <= open);
                until("all memory of the device unmapped", || windows() <= mapped);
            }
        }
        println!("{packets} packets, {cut_short} deaths that the client noticed");
        // All but those while it unmaps and closes, for which it needs no daemon.
        assert!(packets > 30 && cut_short > packets, "{cut_short} of {packets}");
    });
}

/// Mappings of the device's memory.
fn windows() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("pageferry frame")).count()
}
