//! The counters, for Prometheus: a stream socket that answers each HTTP request with all of them.
//!
//! One thread, one client at a time, each for a moment only: whoever scrapes does so every few seconds, and whoever
//! says nothing is not waited for.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use pageferry::{Counter, Server};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// For a client to say what it wants, and as long again to take the answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Of a request.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Connections that may wait.
const BACKLOG: i32 = 16;
/// After an accept that failed: no descriptors are left, say.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers until it is dropped.
pub(super) struct Endpoint {
    /// Its end is how the thread is told to end.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
    /// Device and inode of the socket's file: another one there is not ours to remove.
    id: (u64, u64),
}

impl Endpoint {
    /// Answers at `path`, whose file gets the permissions `mode`. A socket there that nobody listens to is replaced.
    pub(super) fn start(path: &Path, mode: u32, server: Weak<Server>) -> anyhow::Result<Endpoint> {
        let name = || format!("listening at {} for metrics", path.display());
        let listener = bind(path, mode).with_context(name)?;
        let id = std::fs::symlink_metadata(path).map(|m| (m.dev(), m.ino())).with_context(name)?;
        let (stop, stopped) = UnixStream::pair().with_context(name)?;
        let thread = std::thread::Builder::new()
            .name("pageferry-metrics".into())
            .spawn(move || answer_all(&listener, &stopped, &server))
            .with_context(name)?;
        Ok(Endpoint { stop: Some(stop), thread: Some(thread), path: path.into(), id })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
        let seen = std::fs::symlink_metadata(&self.path).map(|m| (m.dev(), m.ino()));
        if seen.is_ok_and(|seen| seen == self.id) {
            // If it cannot be removed, the next one finds that nobody listens there.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bind(path: &Path, mode: u32) -> anyhow::Result<UnixListener> {
    if let Ok(there) = std::fs::symlink_metadata(path) {
        if !there.file_type().is_socket() {
            bail!("something is there, and is no socket");
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).context("removing a dead socket")?;
            }
            _ => bail!("it is in use by another server"),
        }
    }
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Never open to more than it should be; before `listen`, everybody is refused.
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
    rustix::net::bind(&fd, &address)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd.into())
}

fn answer_all(listener: &UnixListener, stopped: &UnixStream, server: &Weak<Server>) {
    loop {
        let mut both = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
        ];
        match poll(&mut both, None) {
            Ok(_) if !both[1].revents().is_empty() => return,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => std::thread::sleep(PAUSE),
        }
        match listener.accept() {
            Ok((client, _)) => {
                if let Err(error) = answer(&client, server) {
                    tracing::debug!(%error, "a client of the metrics is given up");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "accepting a client of the metrics failed; trying again");
                std::thread::sleep(PAUSE);
            }
        }
    }
}

fn answer(mut client: &UnixStream, server: &Weak<Server>) -> io::Result<()> {
    let request = request(client)?;
    let (status, body) = match request.split(|b| *b == b' ').next() {
        Some(b"GET") => match server.upgrade() {
            Some(server) => ("200 OK", text(&server)),
            None => return Ok(()),
        },
        _ => ("405 Method Not Allowed", "only GET is answered\n".into()),
    };
    client.set_write_timeout(Some(PATIENCE))?;
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    client.write_all((head + &body).as_bytes())
}

/// What comes before the first empty line.
fn request(mut client: &UnixStream) -> io::Result<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        client.set_read_timeout(Some(left))?;
        match client.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => request.extend(&piece[..bytes]),
        }
        if request.len() > REQUEST_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(request)
}

/// All of them, in the text format of Prometheus.
fn text(server: &Server) -> String {
    let mut text = String::new();
    for counter in server.cache().stats().counters() {
        let Counter { name, help, value, .. } = counter;
        let (kind, suffix) = if counter.grows() { ("counter", "_total") } else { ("gauge", "") };
        metric(&mut text, &format!("{name}{suffix}"), kind, help, *value);
    }
    metric(&mut text, "sessions", "gauge", "sessions of clients now", server.sessions() as u64);
    text
}

fn metric(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "# HELP pageferry_{name} {help}\n# TYPE pageferry_{name} {kind}\npageferry_{name} {value}"
    );
}
