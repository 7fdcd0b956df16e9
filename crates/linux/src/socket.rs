//! Sockets that carry whole packets, with descriptors, between processes of one system.
//!
//! Seen on 6.18:
//!
//! - Any number of threads may wait in [`Socket::recv`]; each packet, with its descriptors, goes to one of
//!   them. A [shutdown](Socket::shutdown) wakes all of them, and packets that were sent before it are still
//!   received.
//! - A packet of no bytes is received as the end of the connection is: as nothing. Here it *is* the end, for
//!   all threads alike.
//! - A peer that closes with packets unread makes one receive fail (`ECONNRESET`) before the packets that it had
//!   sent itself are received.
//! - A sender waits while the packets that its peer has not received fill its buffer (`SO_SNDBUF`, 208 KiB
//!   by default), for as long as it takes: hence [`Socket::set_send_timeout`].
//! - Where more descriptors come than there is room for, or than this process may still open, those that fit are
//!   there, and the packet is marked. A packet has at most 253. Without `CAP_SYS_RESOURCE` or
//!   `CAP_SYS_ADMIN`, a user's descriptors that are sent and not received count towards `RLIMIT_NOFILE`
//!   (`ETOOMANYREFS`). They stay on their way when the sender shuts down or closes its end, for as long as the
//!   receiver keeps its own.
//! - Whoever receives a descriptor has to close it, and **closing may wait** for as long as somebody likes: where the
//!   file is of FUSE, its server is asked first ([`file_system_served`](crate::file_system_served) tells). That
//!   is so for those as well that are closed here because they were not wanted. So who receives from strangers
//!   does so in a thread that only they need. Descriptors in packets that are never received wait for nobody.
//! - The peer's process is 0 where it is in a process namespace that this one cannot see.

mod listener;
mod systemd;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::Timeout;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags,
    SocketType,
};

use crate::fork::LostInChildren;

pub use listener::{ListenError, Listener};
pub use systemd::notify_systemd;

/// Descriptors with one packet, at most.
const DESCRIPTORS_MAX: usize = 64;
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// One end of a connection. All calls may be made by any number of threads at once.
///
/// # Invariants
/// `fd` is a connected `SOCK_SEQPACKET` socket of the Unix family, blocking, and closes on exec.
#[derive(Debug)]
pub struct Socket {
    /// A forked child finds something else in its place: it would keep the connection open when its parent is gone.
    /// Before the descriptors, which close after it.
    _lost_in_children: Option<LostInChildren>,
    fd: OwnedFd,
    /// What children find.
    _instead: Option<OwnedFd>,
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A whole packet of so many bytes, and its descriptors.
    Packet(usize),
    /// A packet larger than the buffer; it is gone, and its descriptors are closed.
    Truncated {
        /// Bytes that it had.
        bytes: usize,
    },
    /// A packet with more descriptors than were wanted, or than this process may open; it is gone, and they are
    /// closed.
    TooManyDescriptors,
    /// The connection has ended, and everything that was sent has been received.
    Closed,
}

/// Who is at the other end: who called `connect`, or `listen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The process; 0 if it cannot be named here.
    pub pid: u32,
    /// Its effective user at that time.
    pub uid: u32,
    /// Its effective group at that time.
    pub gid: u32,
}

impl Socket {
    /// Connects to who [listens](Listener) at a path. Forked children (by `fork`, not by a bare `clone`) do not
    /// inherit the connection. Waits while too many others do.
    ///
    /// # Errors
    /// `ENOENT`; `ECONNREFUSED` if nobody listens; `EPROTOTYPE` if it is a socket of another type;
    /// `EACCES`; `ENAMETOOLONG` beyond 107 bytes.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Socket> {
        let address = SocketAddrUnix::new(path.as_ref())?;
        let fd = new(SocketFlags::CLOEXEC)?;
        retry_on_intr(|| rustix::net::connect(&fd, &address))?;
        // Children of processes with very many connections keep them.
        let instead = new(SocketFlags::CLOEXEC)?;
        let lost_in_children = LostInChildren::new(fd.as_fd(), instead.as_fd()).ok();
        Ok(Socket { _lost_in_children: lost_in_children, fd, _instead: Some(instead) })
    }

    /// Two that are connected to each other.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn pair() -> io::Result<(Socket, Socket)> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (one, other) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
        Ok((Socket::plain(one), Socket::plain(other)))
    }

    fn plain(fd: OwnedFd) -> Socket {
        Socket { _lost_in_children: None, fd, _instead: None }
    }

    /// Sends a packet with descriptors, all or nothing. No signal comes of a peer that is gone.
    ///
    /// # Errors
    /// `InvalidInput` for no bytes or more than 64 descriptors; `TimedOut` if the peer has not received for as
    /// long as [told](Self::set_send_timeout); `EPIPE` or `ECONNRESET` if it is gone; `EMSGSIZE` if the
    /// packet can never fit; `ETOOMANYREFS` if too many descriptors are on their way.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if bytes.is_empty() || fds.len() > DESCRIPTORS_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let packet = [IoSlice::new(bytes)];
        let send = || rustix::net::sendmsg(&self.fd, &packet, &mut control, SendFlags::NOSIGNAL);
        match retry_on_intr(send) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// How long a [send](Self::send) waits for the peer to receive; `None`: for ever, as it is at first.
    ///
    /// # Errors
    /// `EINVAL` for no time at all, `EDOM` for too much.
    pub fn set_send_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_timeout(&self.fd, Timeout::Send, timeout)?)
    }

    /// How long a [recv](Self::recv) waits for a packet, which then fails with `WouldBlock`; `None`: for ever, as it is
    /// at first.
    ///
    /// # Errors
    /// `EINVAL` for no time at all, `EDOM` for too much.
    pub fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_timeout(&self.fd, Timeout::Recv, timeout)?)
    }

    /// The peer has received all packets that were sent here, or is gone. Also after a [shutdown](Self::shutdown), which
    /// takes nothing from it that was sent before.
    ///
    /// # Errors
    /// None that is known of.
    pub fn all_received(&self) -> io::Result<bool> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: `TIOCOUTQ` (`SIOCOUTQ`) writes a `c_int`, and does nothing else.
        unsafe { crate::abi::ioctl(self.fd.as_fd(), libc::TIOCOUTQ as u32, &mut bytes) }?;
        Ok(bytes == 0)
    }

    /// A descriptor that somebody has sent, if it is a Unix socket of packets. Never waits.
    #[must_use]
    pub fn received(fd: OwnedFd) -> Option<Socket> {
        use rustix::net::{AddressFamily, SocketType, sockopt};
        let kind = sockopt::socket_type(&fd).ok()?;
        let domain = sockopt::socket_domain(&fd).ok()?;
        (kind == SocketType::SEQPACKET && domain == AddressFamily::UNIX).then(|| Socket::plain(fd))
    }

    /// Waits for a packet and puts it into `buf`, and its descriptors, which close on exec, into `fds` (which is
    /// emptied first). At most `max_fds` are taken, and never more than 64.
    ///
    /// # Errors
    /// Only such as no peer can cause: out of memory, or `buf` is empty (`InvalidInput`).
    pub fn recv(
        &self,
        buf: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        max_fds: usize,
    ) -> io::Result<Received> {
        fds.clear();
        if buf.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::TRUNC;
        let packet = loop {
            match rustix::net::recvmsg(&self.fd, &mut [IoSliceMut::new(buf)], &mut control, flags) {
                Ok(packet) => break packet,
                // Of a reset, packets that came before it are left.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(error.into()),
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        let received = match packet.bytes {
            0 => {
                // Perhaps an empty packet, of which no other thread has heard.
                self.shutdown();
                Received::Closed
            }
            bytes if bytes > buf.len() => Received::Truncated { bytes },
            _ if packet.flags.contains(ReturnFlags::CTRUNC) || fds.len() > max_fds => {
                Received::TooManyDescriptors
            }
            bytes => return Ok(Received::Packet(bytes)),
        };
        fds.clear();
        Ok(received)
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// None that is known of.
    pub fn peer(&self) -> io::Result<Peer> {
        // Not by rustix, whose type has no place for the process 0.
        let mut seen = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
        let value = (&raw mut seen).cast();
        // SAFETY: `value` is valid for writes of as many bytes as `len` says, and `len` for reads and writes.
        let rc = unsafe { libc::getsockopt(self.fd.as_raw_fd(), level, option, value, &mut len) };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Peer { pid: u32::try_from(seen.pid).unwrap_or(0), uid: seen.uid, gid: seen.gid })
    }

    /// Ends the connection, in both directions: who waits at either end wakes.
    pub fn shutdown(&self) {
        // Fails only if the peer has ended it already.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Neither bound nor connected.
fn new(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}
