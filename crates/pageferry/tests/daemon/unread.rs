//! Clients that do not receive the descriptors that they are sent.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::children::{heard, play, say};
use crate::common::*;
use crate::raw::*;
use crate::users::{be_nobody, root};
use pageferry::serve::Limits;
use pageferry::{Cache, PinMode};
use pageferry_wire::*;

/// Frames of the file that is mapped, as many as come with one answer.
const FRAMES: u64 = DESCRIPTORS_MAX as u64;

fn large(d: &Daemon) -> PathBuf {
    let path = d.path("large");
    std::fs::write(&path, pattern(FRAMES * FRAME)).unwrap();
    path
}

/// Has pinned a large file, and asks for all its frames, so often; receives nothing.
fn hog(socket: &Path, path: &Path, times: usize) -> Raw {
    let mut raw = Raw::greeted(socket);
    let file = raw.open(path, false);
    let pin = raw.pin(file, 0..FRAMES * FRAME, Mode::Read).unwrap();
    for _ in 0..times {
        raw.send(Request::Frames { pin, first_folio: 0, known: vec![0; FRAMES as usize] }, &[]);
    }
    raw
}

fn impatient(limits: &mut Limits) {
    limits.reply_time = Duration::from_millis(200);
}

#[test]
fn a_client_that_leaves_descriptors_unread_is_sent_no_more() {
    alone(60, || {
        let d = daemon_with(FRAMES, 0o600, impatient);
        let path = large(&d);
        let hog = hog(&d.socket, &path, 5);
        until("its end", || d.server().sessions() == 0);
        let came: usize = std::iter::from_fn(|| hog.next()).map(|(_, came)| came.len()).sum();
        assert_eq!(came, DESCRIPTORS_MAX, "what was on its way");
        drop(hog);
        d.ends_clean();
    });
}

/// Who receives what it asks for is sent any number, however many it asks for at once.
#[test]
fn who_reads_descriptors_late_gets_all() {
    alone(60, || {
        let d = daemon(FRAMES);
        let path = large(&d);
        let late = hog(&d.socket, &path, 20);
        // Most answers wait for it.
        until("an answer", || late.is_answered(Duration::ZERO));
        for _ in 0..20 {
            assert_eq!(late.next().unwrap().1.len(), DESCRIPTORS_MAX);
        }
        drop(late);
        d.ends_clean();
    });
}

/// They cannot be taken back, so they keep the session's room.
#[test]
fn descriptors_on_their_way_count_as_a_session_after_its_end() {
    alone(60, || {
        let limit = |limits: &mut Limits| {
            impatient(limits);
            limits.sessions_per_user = 2;
        };
        let d = daemon_with(FRAMES, 0o600, limit);
        let path = large(&d);
        let mut hogs: Vec<Raw> = (0..2).map(|_| hog(&d.socket, &path, 2)).collect();
        until("their end", || d.server().sessions() == 0);
        let third = Raw::connect(&d.socket);
        let (answer, _) = third.next().unwrap();
        assert!(matches!(answer.result, Err(Failure::Limit { limit: 2, .. })), "{answer:?}");
        // One reads what it was sent, the other just ends.
        assert_eq!(hogs[0].next().unwrap().1.len(), DESCRIPTORS_MAX);
        d.serves();
        drop(hogs.pop());
        until("its end", || d.server().sessions() == 0);
        let both = [d.client(), d.client()];
        drop((hogs, both, third));
        d.ends_clean();
    });
}

/// A daemon that may have few descriptors on their way: of a user without privileges, in a process of its own.
pub fn weak_daemon(descriptors: u64) {
    let d = daemon_with(FRAMES + 1, 0o666, |_| {});
    let open = PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(d.dir.path(), open).unwrap();
    let path = large(&d);
    // Its frames are made.
    drop(hog(&d.socket, &path, 0));
    let limit = libc::rlimit { rlim_cur: descriptors, rlim_max: descriptors };
    // SAFETY: reads the structure only.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    say(d.dir.path().to_str().unwrap());
    heard();
    d.deserted();
    say("clean");
}

/// Clients that are sent what they do not receive, together as much as the daemon may have on its way.
#[test]
fn descriptors_that_are_not_received_end_no_other_session() {
    if !root() {
        return;
    }
    alone(120, || {
        // More than it has itself, less than five answers have.
        let mut daemon = play("unread", &["300"], be_nobody);
        let dir = PathBuf::from(daemon.says().expect("a daemon"));
        let (socket, path) = (dir.join("socket"), dir.join("large"));
        let hogs: Vec<Raw> = (0..5).map(|_| hog(&socket, &path, 1)).collect();
        hogs.iter().for_each(|hog| until("an answer", || hog.is_answered(Duration::ZERO)));
        let mut other = Raw::greeted(&socket);
        let file = other.open(&path, false);
        let pin = other.pin(file, 0..FRAME, Mode::Read).unwrap();
        is_limit(other.frames(pin, 0, 1));
        same(&other.read(file, 0, 4096).unwrap(), &pattern(4096), "without descriptors");
        // A client of this library asks again.
        let cache = Cache::connect(&socket).unwrap();
        let file = cache.open(&path).unwrap();
        let reader = std::thread::spawn(move || {
            let pin = file.pin(0..FRAME, PinMode::Read).unwrap();
            let mut buf = vec![0; FRAME as usize];
            pin.view().unwrap().read(0, &mut buf).unwrap();
            buf
        });
        // Time to ask in vain; should it be later, the test only shows less.
        std::thread::sleep(Duration::from_millis(200));
        drop(hogs);
        assert_eq!(other.frames(pin, 0, 1).unwrap().1.len(), 1);
        same(&reader.join().unwrap(), &pattern(FRAME), "what it reads");
        drop((other, cache));
        daemon.hears_no_more();
        daemon.must_say("clean");
    });
}
