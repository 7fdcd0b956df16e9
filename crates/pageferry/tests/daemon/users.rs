//! Another user's processes. As root only, who can be another user.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::children::{heard, play, say};
use crate::common::*;
use crate::raw::*;
use pageferry_linux::Socket;
use pageferry_wire::*;

const NOBODY: u32 = 65534;

pub fn root() -> bool {
    // SAFETY: asks for a number.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        crate::skipped!("only root can be another user");
    }
    root
}

pub fn be_nobody(command: &mut Command) {
    command.uid(NOBODY).gid(NOBODY);
}

/// What the other user does: tells how each of its attempts ends.
pub fn as_nobody(socket: &str, dir: &str) {
    let mut raw = match Socket::connect(socket) {
        Ok(socket) => Raw::on(socket),
        Err(error) => return say(&format!("no connection: {:?}", error.kind())),
    };
    raw.hello();
    let path = |name: &str| Path::new(dir).join(name);
    let open =
        |name: &str, write| std::fs::File::options().read(true).write(write).open(path(name));
    assert!(open("private", false).is_err() && open("readable", true).is_err());
    // What it may only look for, it cannot show.
    let place =
        rustix::fs::open(path("private"), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
    assert!(raw.show(place.unwrap().as_fd(), false).is_err());
    let readable = open("readable", false).unwrap();
    assert!(matches!(raw.show(readable.as_fd(), true), Err(Failure::ReadOnly(_))));
    let file = raw.show(readable.as_fd(), false).unwrap();
    assert!(matches!(raw.pin(file, 0..1, Mode::Write), Err(Failure::ReadOnly(_))));
    let pin = raw.pin(file, 0..FRAME, Mode::Read).unwrap();
    is_limit(raw.pin(file, 0..FRAME, Mode::Read));
    assert_eq!(raw.frames(pin, 0, 1).unwrap().1.len(), 1);
    let Ok(Reply::Sessions { sessions, .. }) = raw.ask(Request::Sessions { after: 0 }) else {
        panic!("no sessions");
    };
    assert!(sessions.iter().all(|session| session.uid == NOBODY), "{sessions:?}");
    assert_eq!(sessions.len(), 1);
    let second = Raw::connect(Path::new(socket));
    let (answer, _) = second.next().unwrap();
    is_limit(answer.result);
    say("as it should be");
    heard();
}

fn open_to_all(d: &Daemon) {
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(d.dir.path(), 0o755);
    mode(&d.file("private"), 0o600);
    mode(&d.file("readable"), 0o644);
}

fn nobody(d: &Daemon) -> crate::children::Player {
    let (socket, dir) = (d.socket.to_str().unwrap(), d.dir.path().to_str().unwrap());
    play("user", &[socket, dir], be_nobody)
}

#[test]
fn a_socket_of_its_owner_lets_nobody_else_in() {
    if !root() {
        return;
    }
    alone(60, || {
        let d = daemon(8);
        open_to_all(&d);
        nobody(&d).must_say("no connection: PermissionDenied");
        d.ends_clean();
    });
}

#[test]
fn another_user_has_its_files_its_limits_and_its_sessions() {
    if !root() {
        return;
    }
    alone(60, || {
        let d = daemon_with(16, 0o666, |limits| {
            limits.sessions_per_user = 1;
            limits.pinned_bytes_per_user = FRAME;
        });
        open_to_all(&d);
        let mut root = d.client();
        let private = root.open(&d.path("private"), true);
        root.pin(private, 0..FRAME, Mode::Write).unwrap();
        let mut other = nobody(&d);
        other.must_say("as it should be");
        let Ok(Reply::Sessions { sessions, .. }) = root.ask(Request::Sessions { after: 0 }) else {
            panic!("no sessions");
        };
        let uids: Vec<u32> = sessions.iter().map(|session| session.uid).collect();
        assert_eq!(uids, [0, NOBODY], "root sees all: {sessions:?}");
        assert_eq!(sessions[1].pid, other.pid());
        assert!(other.ends().success());
        drop((root, other));
        until("its end", || d.server().sessions() == 0);
        d.ends_clean();
    });
}
