//! A daemon to attack, clients that keep no rule, and a well-behaved one beside them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::common::{FRAME, pattern, same, within};
use pageferry::device::Device;
use pageferry::serve::{Limits, Listener};
use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{Cache, CacheConfig, PinMode, Server};
use pageferry_linux::{MemoryWriter, Received, Socket};
use pageferry_wire::{
    After, Call, Failure, FileId, MESSAGE_BYTES_MAX, Mode, PinId, Release, Reply, Request, Return,
    Span, Stores, VERSION, Wait, decode_return, encode_call, encode_runs,
};

/// Bytes of the files that tests make.
pub const FILE: u64 = 4 * FRAME;

/// One test at a time: descriptors and threads of the process are counted.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test that might hang, when no other runs.
pub fn alone(seconds: u64, test: impl FnOnce() + Send + 'static) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    within(seconds, test);
}

/// A daemon in this process.
pub struct Daemon {
    pub server: Option<Server>,
    pub dir: tempfile::TempDir,
    pub socket: PathBuf,
    device: Option<Arc<SoftDevice>>,
    before: (usize, usize),
}

/// One with a device of so many frames.
pub fn daemon(frames: u64) -> Daemon {
    daemon_with(frames, 0o600, |_| {})
}

pub fn daemon_with(frames: u64, mode: u32, limit: impl FnOnce(&mut Limits)) -> Daemon {
    daemon_of(frames, mode, limit, |soft| soft)
}

/// One whose device is what is made of the software device.
pub fn daemon_of(
    frames: u64,
    mode: u32,
    limit: impl FnOnce(&mut Limits),
    made: impl FnOnce(Arc<SoftDevice>) -> Arc<dyn Device>,
) -> Daemon {
    let before = (descriptors(), threads());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let mut limits = Limits::default();
    limit(&mut limits);
    let device = Arc::new(device(frames));
    let listener = Listener::bind(&socket, mode).unwrap();
    let config = CacheConfig::default().flush_age(None);
    let server = Server::start(made(device.clone()), config, limits, listener).unwrap();
    std::fs::write(dir.path().join("well-behaved"), pattern(FRAME)).unwrap();
    let server = Some(server);
    Daemon { server, dir, socket, device: Some(device), before }
}

pub fn device(frames: u64) -> SoftDevice {
    let soft = SoftConfig {
        frame_bytes: FRAME,
        capacity_bytes: frames * FRAME,
        workers: 2,
        exportable: true,
        ..SoftConfig::default()
    };
    SoftDevice::new(soft).unwrap()
}

impl Daemon {
    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of [`FILE`] bytes with the pattern.
    pub fn file(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, pattern(FILE)).unwrap();
        path
    }

    pub fn stat(&self, name: &str) -> u64 {
        self.server().cache().stats().get(name).unwrap()
    }

    /// A client that has said who it is.
    pub fn client(&self) -> Raw {
        Raw::greeted(&self.socket)
    }

    /// Another client is served as if nothing were.
    #[track_caller]
    pub fn serves(&self) {
        let cache = Cache::connect(&self.socket).unwrap();
        let file = cache.open(self.path("well-behaved")).unwrap();
        let pin = file.pin(0..FRAME, PinMode::Read).unwrap();
        let mut buf = vec![0; FRAME as usize];
        pin.view().unwrap().read(0, &mut buf).unwrap();
        pin.release().unwrap();
        same(&buf, &pattern(FRAME), "a well-behaved client");
        file.close().unwrap();
    }

    /// All clients are gone, and the daemon has noticed.
    #[track_caller]
    pub fn deserted(&self) {
        until("the sessions' end", || self.server().sessions() == 0);
        assert_eq!(self.stat("live_pins"), 0, "pins of nobody");
    }

    /// Another client is served; then, when all clients are gone, nothing of theirs is left, and when the daemon has
    /// stopped nothing of it is.
    #[track_caller]
    pub fn ends_clean(mut self) {
        self.serves();
        self.deserted();
        self.server.take().unwrap().stop().unwrap();
        drop(self.device.take());
        until("all descriptors closed", || descriptors() <= self.before.0);
        until("all threads ended", || threads() <= self.before.1);
    }
}

/// Waits for what must come, however slow the machine is.
#[track_caller]
pub fn until(what: &str, is_so: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < limit, "{what} does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Open descriptors of this process.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Threads of this process that are a cache's, a daemon's or a device's.
fn threads() -> usize {
    let names = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    // One that has just ended has no name any more.
    let names = names.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("pageferry") || name.starts_with("soft")).count()
}

/// A client that keeps no rule but those it wants to.
pub struct Raw {
    pub socket: Socket,
    last_id: u32,
}

/// An answer.
pub type Answer = Result<(Reply, Vec<OwnedFd>), Failure>;

impl Raw {
    pub fn connect(socket: &Path) -> Raw {
        Raw::on(Socket::connect(socket).unwrap())
    }

    pub fn on(socket: Socket) -> Raw {
        Raw { socket, last_id: 0 }
    }

    pub fn greeted(socket: &Path) -> Raw {
        let mut raw = Raw::connect(socket);
        raw.hello();
        raw
    }

    pub fn hello(&mut self) -> u64 {
        match self.ask(Request::Hello { version: VERSION }) {
            Ok(Reply::Welcome { session, .. }) => session,
            other => panic!("{other:?}"),
        }
    }

    /// Sends a request; its id.
    pub fn send(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> u32 {
        self.last_id += 1;
        let packet = encode_call(&Call { id: self.last_id, request }).unwrap();
        // Perhaps the daemon has hung up; the answer tells.
        let _ = self.socket.send(&packet, fds);
        self.last_id
    }

    /// The next answer; `None`: the daemon has hung up.
    pub fn next(&self) -> Option<(Return, Vec<OwnedFd>)> {
        let (mut packet, mut fds) = (vec![0; MESSAGE_BYTES_MAX], Vec::new());
        match self.socket.recv(&mut packet, &mut fds, 64).unwrap() {
            Received::Packet(bytes) => Some((decode_return(&packet[..bytes]).unwrap(), fds)),
            Received::Closed => None,
            other => panic!("{other:?}"),
        }
    }

    /// Something comes within a time.
    pub fn is_answered(&self, time: Duration) -> bool {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.socket.as_fd());
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, which outlives the call.
        unsafe { libc::poll(&raw mut poll, 1, time.as_millis() as i32) > 0 }
    }

    #[track_caller]
    pub fn call(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> Answer {
        let sent = self.send(request, fds);
        let (Return { id, result }, came) = self.next().expect("an answer");
        assert_eq!(id, sent, "an answer to something else: {result:?}");
        result.map(|reply| (reply, came))
    }

    #[track_caller]
    pub fn ask(&mut self, request: Request) -> Result<Reply, Failure> {
        self.call(request, &[]).map(|(reply, _)| reply)
    }

    #[track_caller]
    pub fn hangs_up(&self) {
        while let Some((answer, _)) = self.next() {
            let why = answer.result;
            assert!(why.is_err(), "it is answered: {why:?}");
        }
    }

    pub fn show(&mut self, fd: BorrowedFd<'_>, writable: bool) -> Result<FileId, Failure> {
        match self.call(Request::Open { name: "shown".into(), writable }, &[fd])?.0 {
            Reply::Opened { file } => Ok(file),
            other => panic!("{other:?}"),
        }
    }

    pub fn open(&mut self, path: &Path, writable: bool) -> FileId {
        let file = std::fs::File::options().read(true).write(writable).open(path).unwrap();
        self.show(file.as_fd(), writable).unwrap()
    }

    pub fn pin(
        &mut self,
        file: FileId,
        range: std::ops::Range<u64>,
        mode: Mode,
    ) -> Result<PinId, Failure> {
        self.pin_for(file, range, mode, Wait::Block)
    }

    pub fn pin_for(
        &mut self,
        file: FileId,
        range: std::ops::Range<u64>,
        mode: Mode,
        wait: Wait,
    ) -> Result<PinId, Failure> {
        let ranges = vec![Span::new(range).unwrap()];
        match self.ask(Request::Pin { file, ranges, mode, wait, owner: None })? {
            Reply::Pinned { pins, .. } => Ok(pins[0]),
            other => panic!("{other:?}"),
        }
    }

    pub fn release(&mut self, pin: PinId) -> Result<(), Failure> {
        let pins = vec![Release { pin, after: After::WriteBack }];
        match self.ask(Request::Release { pins, stores: None })? {
            Reply::Released { pins } => pins.into_iter().collect::<Result<Vec<_>, _>>().map(drop),
            other => panic!("{other:?}"),
        }
    }

    /// Releases a pin with what was stored; what comes of that one pin.
    pub fn release_stored(
        &mut self,
        pin: PinId,
        stores: Stores,
        memory: BorrowedFd<'_>,
    ) -> Result<(), Failure> {
        let pins = vec![Release { pin, after: After::WriteBack }];
        match self.call(Request::Release { pins, stores: Some(stores) }, &[memory])?.0 {
            Reply::Released { pins } => pins.into_iter().collect::<Result<Vec<_>, _>>().map(drop),
            other => panic!("{other:?}"),
        }
    }

    /// The serials and memories of folios.
    pub fn frames(
        &mut self,
        pin: PinId,
        first_folio: u64,
        folios: usize,
    ) -> Result<(Vec<u64>, Vec<OwnedFd>), Failure> {
        let known = vec![0; folios];
        match self.call(Request::Frames { pin, first_folio, known }, &[])? {
            (Reply::Frames { serials, .. }, memories) => Ok((serials, memories)),
            (other, _) => panic!("{other:?}"),
        }
    }

    pub fn read(&mut self, file: FileId, offset: u64, bytes: u32) -> Result<Vec<u8>, Failure> {
        match self.ask(Request::Read { file, offset, bytes, owner: None })? {
            Reply::Data(data) => Ok(data),
            other => panic!("{other:?}"),
        }
    }
}

pub fn span(range: std::ops::Range<u64>) -> Span {
    Span::new(range).unwrap()
}

/// Stores of a byte in ranges, sealed, with what says so.
pub fn stored(file: FileId, runs: &[std::ops::Range<u64>], byte: u8) -> (Stores, OwnedFd) {
    let spans: Vec<Span> = runs.iter().map(|run| span(run.clone())).collect();
    let bytes: u64 = spans.iter().map(|span| span.len()).sum();
    let memory = sealed(&[encode_runs(&spans).unwrap(), vec![byte; bytes as usize]].concat());
    (Stores { file, runs: runs.len() as u64, bytes }, memory)
}

pub fn sealed(bytes: &[u8]) -> OwnedFd {
    let mut writer = MemoryWriter::new().unwrap();
    writer.append(bytes).unwrap();
    writer.seal().unwrap().as_fd().try_clone_to_owned().unwrap()
}

#[track_caller]
pub fn is_protocol<T: std::fmt::Debug>(result: Result<T, Failure>) {
    assert!(matches!(&result, Err(Failure::Protocol(_))), "{result:?}");
}

#[track_caller]
pub fn is_limit<T: std::fmt::Debug>(result: Result<T, Failure>) {
    assert!(matches!(&result, Err(Failure::Limit { .. })), "{result:?}");
}
