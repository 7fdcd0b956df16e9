//! Packets, their descriptors, and what a hostile peer can do with them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::time::Duration;

use pageferry_linux::{Listener, Received, Socket};
use rustix::net::SendFlags;

use crate::{Watchdog, child};

fn file(text: &str) -> File {
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(text.as_bytes()).expect("write");
    file
}

fn text(fd: &OwnedFd) -> String {
    let mut file = File::from(fd.try_clone().expect("duplicate"));
    file.rewind().expect("seek");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    text
}

fn closes_on_exec(fd: &OwnedFd) -> bool {
    rustix::io::fcntl_getfd(fd).expect("flags").contains(rustix::io::FdFlags::CLOEXEC)
}

#[test]
fn packets_arrive_whole_and_in_order_with_their_descriptors() {
    let (here, there) = Socket::pair().expect("pair");
    let files = [file("one"), file("two"), file("three")];
    let (mut buf, mut fds) = ([0; 100], Vec::new());
    here.send(b"first", &[files[0].as_fd(), files[1].as_fd()]).expect("send");
    here.send(b"second packet", &[]).expect("send");
    here.send(&[7; 100], &[files[2].as_fd()]).expect("send");
    assert_eq!(there.recv(&mut buf, &mut fds, 2).expect("recv"), Received::Packet(5));
    assert_eq!(&buf[..5], b"first");
    assert_eq!(fds.iter().map(text).collect::<Vec<_>>(), ["one", "two"]);
    assert!(fds.iter().all(closes_on_exec));
    // What the last packet brought is not taken for this one's.
    assert_eq!(there.recv(&mut buf, &mut fds, 2).expect("recv"), Received::Packet(13));
    assert_eq!((&buf[..13], fds.len()), (&b"second packet"[..], 0));
    assert_eq!(there.recv(&mut buf, &mut fds, 2).expect("recv"), Received::Packet(100));
    assert_eq!(fds.iter().map(text).collect::<Vec<_>>(), ["three"]);
}

#[test]
fn the_largest_packet_and_the_most_descriptors_fit() {
    let (here, there) = Socket::pair().expect("pair");
    let file = file("x");
    here.send(&[1; 64 << 10], &[file.as_fd(); 64]).expect("send");
    let (mut buf, mut fds) = (vec![0; 64 << 10], Vec::new());
    assert_eq!(there.recv(&mut buf, &mut fds, 64).expect("recv"), Received::Packet(64 << 10));
    assert_eq!(fds.len(), 64);
    for (bytes, fds) in [(&b"x"[..], &[file.as_fd(); 65][..]), (b"", &[])] {
        let refused = here.send(bytes, fds).expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }
}

/// Sends what [`Socket::send`] does not.
fn send_raw(socket: &Socket, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let packet = [std::io::IoSlice::new(bytes)];
    rustix::net::sendmsg(socket, &packet, &mut control, SendFlags::empty()).expect("sendmsg");
}

/// The number that the next descriptor gets: none below it has leaked.
fn next_number() -> i32 {
    std::io::stdin().as_fd().try_clone_to_owned().expect("duplicate").as_raw_fd()
}

#[test]
fn packets_that_hold_too_much_are_dropped_with_their_descriptors() {
    const NAME: &str = "sockets::packets_that_hold_too_much_are_dropped_with_their_descriptors";
    // Other tests open files meanwhile.
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let (here, there) = Socket::pair().expect("pair");
    let file = file("x");
    let (mut buf, mut fds) = ([0; 10], Vec::new());
    let before = next_number();
    send_raw(&here, b"12345678901", &[file.as_fd(); 3]);
    assert_eq!(there.recv(&mut buf, &mut fds, 9).expect("recv"), Received::Truncated { bytes: 11 });
    for (count, max) in [(1, 0), (3, 2), (65, 64), (253, 64), (253, 1000)] {
        send_raw(&here, b"x", &vec![file.as_fd(); count]);
        let received = there.recv(&mut buf, &mut fds, max).expect("recv");
        assert_eq!(received, Received::TooManyDescriptors, "{count} of {max}");
        assert!(fds.is_empty());
    }
    assert_eq!(next_number(), before, "descriptors have leaked");
    // The connection goes on.
    here.send(b"ok", &[file.as_fd()]).expect("send");
    assert_eq!(there.recv(&mut buf, &mut fds, 1).expect("recv"), Received::Packet(2));
    // No more may be opened: as if there were too many.
    drop(fds);
    let one = rustix::process::Rlimit { current: Some(next_number() as u64 + 1), maximum: None };
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = one.current;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("setrlimit");
    let mut fds = Vec::new();
    send_raw(&here, b"x", &[file.as_fd(); 2]);
    assert_eq!(there.recv(&mut buf, &mut fds, 2).expect("recv"), Received::TooManyDescriptors);
    send_raw(&here, b"x", &[file.as_fd(); 1]);
    assert_eq!(there.recv(&mut buf, &mut fds, 2).expect("recv"), Received::Packet(1));
}

#[test]
fn each_packet_goes_to_one_of_the_threads_that_wait() {
    let _watchdog = Watchdog::watch("threads that receive from one socket");
    const PACKETS: u32 = 4000;
    let (here, there) = Socket::pair().expect("pair");
    let (seen, ended) = (Mutex::new(BTreeSet::new()), Mutex::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (mut buf, mut fds) = ([0; 8], Vec::new());
                loop {
                    match there.recv(&mut buf, &mut fds, 1).expect("recv") {
                        Received::Packet(4) => {
                            let number = u32::from_ne_bytes([buf[0], buf[1], buf[2], buf[3]]);
                            assert!(seen.lock().expect("lock").insert(number), "{number} twice");
                            let name = fds.first().map(text);
                            assert_eq!(name, (number % 16 == 0).then(|| number.to_string()));
                        }
                        Received::Closed => break *ended.lock().expect("lock") += 1,
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
        for number in 0..PACKETS {
            let file = (number % 16 == 0).then(|| file(&number.to_string()));
            let fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();
            here.send(&number.to_ne_bytes(), &fds).expect("send");
        }
        drop(here);
    });
    assert!(seen.into_inner().expect("lock").into_iter().eq(0..PACKETS));
    assert_eq!(ended.into_inner().expect("lock"), 4);
}

/// By a packet of nothing, which one thread receives, or by a shutdown at either end.
#[test]
fn all_threads_hear_of_the_end() {
    let _watchdog = Watchdog::watch("threads that wait for a connection's end");
    let ends: [fn(&Socket, &Socket); 3] = [
        |here, _| send_raw(here, b"", &[]),
        |here, _| here.shutdown(),
        |_, there| there.shutdown(),
    ];
    for end in ends {
        let (here, there) = Socket::pair().expect("pair");
        std::thread::scope(|scope| {
            let wait = || there.recv(&mut [0; 8], &mut Vec::new(), 0).expect("recv");
            let waiting: Vec<_> = (0..3).map(|_| scope.spawn(wait)).collect();
            end(&here, &there);
            for thread in waiting {
                assert_eq!(thread.join().expect("thread"), Received::Closed);
            }
        });
        let gone = here.send(b"x", &[]).expect_err("nobody is there");
        assert_eq!(gone.kind(), ErrorKind::BrokenPipe);
    }
}

#[test]
fn what_was_sent_before_the_end_is_received() {
    let (here, there) = Socket::pair().expect("pair");
    here.send(b"one", &[]).expect("send");
    here.send(b"two", &[]).expect("send");
    // Never received: closing resets the connection.
    there.send(b"unread", &[]).expect("send");
    drop(here);
    let mut buf = [0; 8];
    let mut next = || there.recv(&mut buf, &mut Vec::new(), 0).expect("recv");
    assert_eq!([next(), next()], [Received::Packet(3); 2]);
    assert_eq!([next(), next()], [Received::Closed; 2]);
}

#[test]
fn a_peer_that_does_not_receive_holds_nobody() {
    let _watchdog = Watchdog::watch("sending to a peer that does not receive");
    let (here, there) = Socket::pair().expect("pair");
    here.set_send_timeout(Some(Duration::from_millis(20))).expect("set");
    let sent = (0..).take_while(|_| match here.send(&[1; 1000], &[]) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::TimedOut => false,
        Err(error) => panic!("{error}"),
    });
    assert!(sent.count() > 10);
    // Nothing is left of what was not sent.
    assert_eq!(
        there.recv(&mut [0; 2000], &mut Vec::new(), 0).expect("recv"),
        Received::Packet(1000)
    );
    assert!(here.set_send_timeout(Some(Duration::ZERO)).is_err());
}

#[test]
fn the_peer_is_named() {
    let (here, _there) = Socket::pair().expect("pair");
    let peer = here.peer().expect("peer");
    assert_eq!(peer.pid, std::process::id());
    assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
    assert_eq!(peer.gid, rustix::process::getegid().as_raw());
}

/// It would keep the connection open when its parent is gone.
#[test]
fn a_forked_child_does_not_inherit_a_connection() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("socket");
    let _listener = Listener::bind(&path, 0o600).expect("bind");
    let socket = Socket::connect(&path).expect("connect");
    let peer = || rustix::net::getpeername(&socket).map_or_else(|e| e.raw_os_error(), |_| 0);
    assert_eq!(peer(), 0);
    assert_eq!(child::fork(peer), Ok(libc::ENOTCONN));
    assert_eq!(peer(), 0);
}

/// Also when the sender has shut it down, and when the receiver goes without a word.
#[test]
fn a_sender_is_told_when_everything_is_received() {
    let (one, other) = Socket::pair().unwrap();
    assert!(one.all_received().unwrap());
    for shut in [false, true] {
        if !shut {
            one.send(b"first", &[]).unwrap();
            one.send(b"second", &[one.as_fd()]).unwrap();
        }
        assert!(!one.all_received().unwrap());
        assert!(other.all_received().unwrap(), "it has sent nothing");
        other.recv(&mut [0; 10], &mut Vec::new(), 1).unwrap();
        one.shutdown();
    }
    assert!(one.all_received().unwrap());
    let (one, other) = Socket::pair().unwrap();
    one.send(b"first", &[one.as_fd()]).unwrap();
    drop(other);
    assert!(one.all_received().unwrap());
}
