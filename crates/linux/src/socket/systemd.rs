//! What a service and systemd tell each other: a socket to listen to, and how the service does.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::io::{Errno, FdFlags};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketType};

use super::{ListenError, Listener};

/// The first descriptor that systemd hands over.
const FIRST: RawFd = 3;

impl Listener {
    /// The socket that systemd has opened for this service (`LISTEN_PID`, `LISTEN_FDS`); `None` if it has not.
    /// The variables stay, because changing the environment is unsound beside other threads; they name
    /// this process, so no child takes them for its own.
    ///
    /// The descriptor is duplicated, so this may be called again.
    ///
    /// # Errors
    /// [`ListenError::Handed`] if there are several, or it is something else than a listening
    /// `SOCK_SEQPACKET` socket (`ListenSequentialPacket=`).
    pub fn from_systemd() -> Result<Option<Listener>, ListenError> {
        let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
        let (Some(pid), Some(count)) = (number("LISTEN_PID"), number("LISTEN_FDS")) else {
            return Ok(None);
        };
        if pid != std::process::id() || count == 0 {
            return Ok(None);
        }
        if count > 1 {
            return Err(ListenError::Handed("one of several; this service listens to one only"));
        }
        // SAFETY: systemd has opened it for this process, says the environment, and nothing here closes it. It
        // is used within this function only; were it not open, the calls would fail.
        let fd = unsafe { BorrowedFd::borrow_raw(FIRST) };
        rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC).map_err(ListenError::os("fcntl(F_SETFD)"))?;
        adopt(fd).map(Some)
    }
}

/// Listens to a socket of somebody else's.
fn adopt(fd: BorrowedFd<'_>) -> Result<Listener, ListenError> {
    let kind = match sockopt::socket_type(fd) {
        Ok(kind) => kind,
        Err(Errno::NOTSOCK) => return Err(ListenError::Handed("no socket")),
        Err(error) => return Err(ListenError::os("getsockopt(SO_TYPE)")(error)),
    };
    let family = sockopt::socket_domain(fd).map_err(ListenError::os("getsockopt(SO_DOMAIN)"))?;
    let listens =
        sockopt::socket_acceptconn(fd).map_err(ListenError::os("getsockopt(SO_ACCEPTCONN)"))?;
    if family != AddressFamily::UNIX {
        return Err(ListenError::Handed("not of the Unix family"));
    }
    if kind != SocketType::SEQPACKET {
        return Err(ListenError::Handed("not of packets; it takes ListenSequentialPacket="));
    }
    if !listens {
        return Err(ListenError::Handed("not listening; it takes Accept=no"));
    }
    let own = rustix::io::fcntl_dupfd_cloexec(fd, FIRST)
        .map_err(ListenError::os("fcntl(F_DUPFD_CLOEXEC)"))?;
    Listener::handed(own)
}

/// Tells systemd how this service does: `"READY=1"`, `"STOPPING=1"`, `"STATUS=..."`, several by lines. `false`
/// if it does not want to know (`NOTIFY_SOCKET` is not set). Never waits.
///
/// # Errors
/// It could not be told; or `InvalidInput` if its address is no path and no abstract name.
pub fn notify_systemd(state: &str) -> io::Result<bool> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(address) if !address.is_empty() => notify(&address, state).map(|()| true),
        _ => Ok(false),
    }
}

fn notify(address: &OsStr, state: &str) -> io::Result<()> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(address)?,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(at: &SocketAddr, name: &OsStr) {
        let systemd = UnixDatagram::bind_addr(at).expect("bind");
        notify(name, "READY=1\nSTATUS=here").expect("told");
        let mut heard = [0; 100];
        let len = systemd.recv(&mut heard).expect("heard");
        assert_eq!(&heard[..len], b"READY=1\nSTATUS=here");
    }

    #[test]
    fn systemd_is_told_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("notify");
        told(&SocketAddr::from_pathname(&path).expect("address"), path.as_os_str());
        let name = format!("pageferry-test-{}", std::process::id());
        let at = SocketAddr::from_abstract_name(&name).expect("address");
        told(&at, OsStr::new(&format!("@{name}")));
        let refused = notify(OsStr::new("vsock:2:1"), "READY=1").expect_err("no such address");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        assert!(notify(&path.with_extension("none").into_os_string(), "READY=1").is_err());
    }
}
