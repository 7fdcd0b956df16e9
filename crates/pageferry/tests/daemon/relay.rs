//! What stands between a client and its daemon, passes on what they say, and counts it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use pageferry_linux::{Listener, Received, Socket};
use pageferry_wire::{DESCRIPTORS_MAX, MESSAGE_BYTES_MAX};

/// Called with the number of each packet before it is passed on, and after; `false`: it is not.
pub type Watch = dyn Fn(usize, Moment) -> bool + Send + Sync;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

/// One connection to a daemon, with those that are made by its messages.
pub struct Relay {
    listener: Arc<Listener>,
    accepting: Option<JoinHandle<()>>,
    lines: Arc<Lines>,
}

struct Lines {
    watch: Box<Watch>,
    packets: AtomicUsize,
    /// Those that pass packets on, and the ends that they hear.
    running: Mutex<Vec<(Arc<Socket>, JoinHandle<()>)>>,
}

impl Relay {
    /// For one client that connects to `front`, to the daemon that listens at `back`.
    pub fn start(front: &Path, back: &Path, watch: Box<Watch>) -> Relay {
        let listener = Arc::new(Listener::bind(front, 0o600).unwrap());
        let lines = Lines { watch, packets: AtomicUsize::new(0), running: Mutex::default() };
        let lines = Arc::new(lines);
        let accepting = std::thread::spawn({
            let (listener, lines, back) =
                (Arc::clone(&listener), Arc::clone(&lines), back.to_owned());
            move || {
                if let Some(client) = listener.accept().unwrap() {
                    lines.join(client, Socket::connect(back).unwrap());
                }
            }
        });
        Relay { listener, accepting: Some(accepting), lines }
    }

    /// So many packets were to be passed on.
    pub fn packets(&self) -> usize {
        self.lines.packets.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.listener.stop();
        let _ = self.accepting.take().map(JoinHandle::join);
        // A line that ends may have begun another one.
        while let Some((end, line)) = { self.lines.running.lock().unwrap().pop() } {
            end.shutdown();
            let _ = line.join();
        }
    }
}

impl Lines {
    fn join(self: &Arc<Lines>, one: Socket, other: Socket) {
        let (one, other) = (Arc::new(one), Arc::new(other));
        for (from, to) in [(&one, &other), (&other, &one)] {
            let (lines, heard, to) = (Arc::clone(self), Arc::clone(from), Arc::clone(to));
            let line = std::thread::spawn(move || {
                lines.pass_on(&heard, &to);
                // What one end has closed, the other hears of.
                heard.shutdown();
                to.shutdown();
            });
            self.running.lock().unwrap().push((Arc::clone(from), line));
        }
    }

    fn pass_on(self: &Arc<Lines>, from: &Socket, to: &Socket) {
        let (mut buf, mut fds) = (vec![0; MESSAGE_BYTES_MAX], Vec::new());
        while let Ok(Received::Packet(len)) = from.recv(&mut buf, &mut fds, DESCRIPTORS_MAX) {
            let number = self.packets.fetch_add(1, Ordering::SeqCst) + 1;
            let fds: Vec<OwnedFd> = fds.drain(..).map(|fd| self.overhear(fd)).collect();
            if !(self.watch)(number, Moment::Before) {
                return;
            }
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            if to.send(&buf[..len], &fds).is_err() || !(self.watch)(number, Moment::After) {
                return;
            }
        }
    }

    /// A socket that one end gives to the other is listened to as well.
    fn overhear(self: &Arc<Lines>, fd: OwnedFd) -> OwnedFd {
        let Some(theirs) = Socket::received(fd.try_clone().unwrap()) else { return fd };
        let (ours, given) = Socket::pair().unwrap();
        self.join(theirs, ours);
        given.as_fd().try_clone_to_owned().unwrap()
    }
}
