//! Clients' mappings, as the engine reaches them.
//!
//! A client that maps a file gets the daemon's own description of it, if it is of the daemon's user (or root): it
//! counts as nobody else's, so that the guards' proof stands, and only this client can tell what was stored
//! through it. One that does not tell any more is hung up on, and the daemon takes another description for itself:
//! whoever still has the old one is a stranger from then on, whom the guards know how to see.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use pageferry_engine::MapKey;
use pageferry_linux::{Received, Socket};
use pageferry_wire::{self as wire, Ask, Failure, FileId, MapId, Reply, Span, Task, Told};

use super::kept::OpenFile;
use super::patience::{PATIENCE, Waiting};
use super::replies::Answer;
use super::session::{Session, failed};
use crate::Result;
use crate::error::os_error;
use crate::map::Trappable;
use crate::service::FileService;
use crate::sync::Mutex;

/// The mappings of one client.
#[derive(Default)]
pub(super) struct Maps(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    callbacks: Option<Arc<Callbacks>>,
    maps: HashMap<MapId, HeldMap>,
}

#[derive(Clone)]
struct HeldMap {
    file: Arc<OpenFile>,
    key: MapKey,
    range: Range<u64>,
}

/// Where a client is asked things.
struct Callbacks {
    /// One at a time. `None`: it has not answered, and is not asked any more.
    socket: Mutex<Option<Socket>>,
    session: Weak<Session>,
    number: u64,
}

/// A mapping in a client.
struct RemoteMap {
    callbacks: Arc<Callbacks>,
    id: MapId,
}

impl Callbacks {
    /// Asks; `None` if there is nobody any more to answer. Others may wait for that, with a pin in their hands.
    fn ask(&self, ask: &Ask) -> Option<Told> {
        let waiting = Waiting::begin(self.number);
        let socket = self.socket.lock();
        let told = socket.as_ref().and_then(|socket| converse(socket, ask, waiting.left()?).ok());
        drop(socket);
        if told.is_none() {
            self.give_up("no answer");
        }
        told
    }

    /// Asks nothing more, and ends the session.
    fn give_up(&self, why: &str) {
        *self.socket.lock() = None;
        if let Some(session) = self.session.upgrade() {
            tracing::warn!(session = session.number, why, "a client's mapping is left to itself");
            session.hang_up();
        }
    }
}

fn converse(socket: &Socket, ask: &Ask, time: Duration) -> std::io::Result<Told> {
    let broken = |what: String| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let packet = wire::encode_ask(ask).map_err(|e| broken(e.to_string()))?;
    socket.set_receive_timeout(Some(time))?;
    socket.send(&packet, &[])?;
    let mut packet = vec![0; wire::MESSAGE_BYTES_MAX];
    match socket.recv(&mut packet, &mut Vec::new(), 0)? {
        Received::Packet(bytes) => {
            wire::decode_told(&packet[..bytes]).map_err(|e| broken(e.to_string()))
        }
        other => Err(broken(format!("{other:?}"))),
    }
}

impl RemoteMap {
    /// Has the client do something. Where it cannot be asked any more, its mapping is a stranger's.
    fn ask(&self, task: Task) -> Result<Option<Vec<Range<u64>>>> {
        match self.callbacks.ask(&Ask { map: self.id, task }) {
            Some(Told::Done(runs)) => {
                Ok(runs.map(|runs| runs.into_iter().map(Span::range).collect()))
            }
            // What a client cannot or will not do is not to fail others: it is hung up on.
            Some(Told::Failed(why)) => {
                self.callbacks.give_up(&why);
                Ok(None)
            }
            Some(Told::OutOfVmas { max_map_count }) => {
                self.callbacks.give_up(&format!("its {max_map_count} mappings are used up"));
                Ok(None)
            }
            // The end of its session makes it a stranger's.
            None => Ok(None),
        }
    }
}

impl Trappable for RemoteMap {
    fn trap(&self, range: &Range<u64>) -> Result<Option<Vec<Range<u64>>>> {
        self.ask(Task::Trap(Span::or_empty(range.clone())))
    }

    fn untrap(&self, range: &Range<u64>) -> Result<()> {
        self.ask(Task::Untrap(Span::or_empty(range.clone()))).map(drop)
    }

    fn expel(&self, at: u64) -> Result<()> {
        self.ask(Task::Expel(at)).map(drop)
    }

    fn scan_stores(&self, range: &Range<u64>) -> Result<Option<Vec<Range<u64>>>> {
        self.ask(Task::Scan(Span::or_empty(range.clone())))
    }
}

impl Session {
    /// The daemon's description of a file, for those who may have it.
    pub(super) fn description(&self, file: FileId) -> Result<Answer, Failure> {
        let file = self.held.file(file)?;
        let lent = if self.is_trusted() { failed(file.description())? } else { None };
        Ok(Answer { reply: Reply::Done, descriptors: lent.into_iter().collect() })
    }

    /// Makes the socket on which the client is asked. Its limits of time are those of the daemon's end, which the client
    /// does not have.
    pub(super) fn make_callbacks(self: &Arc<Self>) -> Result<Answer, Failure> {
        let os = |e: std::io::Error| os_error("making a socket to ask a client on", &e);
        let (socket, theirs) = failed(Socket::pair().map_err(os))?;
        // There is room for what is asked, one thing at a time; the time for answers is limited with each.
        failed(socket.set_send_timeout(Some(PATIENCE)).map_err(os))?;
        let theirs = failed(theirs.as_fd().try_clone_to_owned().map_err(os))?;
        let mut tables = self.maps.0.lock();
        if tables.callbacks.is_some() {
            return Err(Failure::Protocol("the session has a socket for callbacks".into()));
        }
        let callbacks = Callbacks {
            socket: Mutex::new(Some(socket)),
            session: Arc::downgrade(self),
            number: self.number,
        };
        tables.callbacks = Some(Arc::new(callbacks));
        Ok(Answer { reply: Reply::Done, descriptors: vec![theirs] })
    }

    pub(super) fn map_in(
        &self,
        map: MapId,
        file: FileId,
        span: Span,
        writable: bool,
    ) -> Result<Reply, Failure> {
        let file = if writable { self.writable(file)? } else { self.held.file(file)? };
        let range = span.range();
        let whole = |at: u64| at.is_multiple_of(4096) && i64::try_from(at).is_ok();
        if span.is_empty() || !whole(range.start) || !whole(range.end) {
            return Err(Failure::Protocol(format!("a mapping of bytes {range:?}")));
        }
        let limits = self.daemon.limits.read().clone();
        let callbacks = {
            let tables = self.maps.0.lock();
            if tables.maps.contains_key(&map) {
                return Err(Failure::Protocol(format!("there is a mapping {}", map.0)));
            }
            if tables.maps.len() >= limits.maps {
                return Err(super::limits::beyond("mappings of a session", limits.maps as u64));
            }
            let missing = || Failure::Protocol("no socket for callbacks".into());
            tables.callbacks.clone().ok_or_else(missing)?
        };
        let remote = RemoteMap { callbacks, id: map };
        let key = failed(file.map_in_another(Arc::new(remote), range.clone(), writable))?;
        let held = HeldMap { file, key, range };
        let twin = self.maps.0.lock().maps.insert(map, held);
        match twin {
            None => Ok(Reply::Done),
            // It was told of twice at once.
            Some(twin) => {
                failed(twin.file.map_out(twin.key, &twin.range))?;
                Err(Failure::Protocol(format!("there was a mapping {}", map.0)))
            }
        }
    }

    pub(super) fn map_out(&self, map: MapId) -> Result<Reply, Failure> {
        let held = self.maps.0.lock().maps.remove(&map).ok_or_else(|| no_map(map))?;
        failed(held.file.map_out(held.key, &held.range))?;
        Ok(Reply::Done)
    }

    pub(super) fn touch(
        &self,
        map: MapId,
        at: u64,
        owner: Option<u32>,
        expel: bool,
    ) -> Result<Reply, Failure> {
        let held = self.maps.0.lock().maps.get(&map).cloned().ok_or_else(|| no_map(map))?;
        if !held.range.contains(&at) {
            return Err(Failure::Protocol(format!("byte {at} is not of mapping {}", map.0)));
        }
        failed(held.file.touch(held.key, at, self.owner(owner), expel))?;
        Ok(Reply::Done)
    }

    /// Forgets the mappings of a client that is gone. If it was killed they are gone as well; if not, they are a
    /// stranger's.
    pub(super) fn forget_maps(&self) {
        let maps = std::mem::take(&mut self.maps.0.lock().maps);
        for held in maps.into_values() {
            // Everything home first: what keeps others from it may end with the description. Which goes whatever
            // else fails: whoever has it is not to count as us.
            let file = &held.file;
            self.give_back("forgetting a mapping", || failed(file.map_out(held.key, &held.range)));
            self.give_back("writing back what was mapped", || {
                failed(file.flush(0..u64::MAX, None).map(drop))
            });
            self.give_back("replacing a description that was lent", || {
                failed(file.take_new_description())
            });
        }
    }
}

fn no_map(map: MapId) -> Failure {
    Failure::Protocol(format!("the session has no mapping {}", map.0))
}
