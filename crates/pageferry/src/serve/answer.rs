//! What each request comes to.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use pageferry_linux::{SealedMemory, Served, file_system_served_to};
use pageferry_wire::{
    self as wire, Failure, FileId, PinId, Reply, Request, SessionUse, Span, frames_sent,
};

use super::held::total;
use super::kept::OpenFile;
use super::replies::Answer;
use super::session::{Session, failed};
use crate::error::os_error;
use crate::service::{CacheService, FileService, Piece};
use crate::{Error, PinMode, Stats, translate};

/// The request may wait for what others hold.
pub(super) fn may_wait(request: &Request) -> bool {
    match request {
        Request::Pin { wait, .. } => *wait != wire::Wait::Try,
        Request::Read { .. }
        | Request::Change { .. }
        | Request::Flush { .. }
        | Request::Sync { .. }
        | Request::FlushAll { .. }
        | Request::Touch { .. } => true,
        _ => false,
    }
}

/// The request may wait for storage, or for a copy.
pub(super) fn takes_time(request: &Request) -> bool {
    !matches!(
        request,
        Request::Hello { .. }
            | Request::SetOwner { .. }
            | Request::Stats
            | Request::Usage
            | Request::Sessions { .. }
    )
}

impl Session {
    /// Does what is asked.
    pub(super) fn answer(
        self: &Arc<Self>,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Answer, Failure> {
        let reply = match request {
            Request::Hello { version } => self.welcome(version)?,
            Request::Open { name, writable } => {
                // It comes into logs.
                self.open_file(&translate::for_people(&name), writable, descriptors)?
            }
            Request::Close { file } => {
                let file = self.held.remove_file(file)?;
                self.close_file(file)?;
                Reply::Done
            }
            Request::Len { file } => Reply::Bytes(failed(self.held.file(file)?.bytes())?),
            Request::Pin { file, ranges, mode, wait, owner } => {
                self.pin(file, &ranges, mode, wait, owner)?
            }
            Request::SetOwner { pin, owner } => {
                let pin = self.held.pin(pin)?;
                if let Some(key) = *pin.key.read() {
                    pin.file.set_owner(key, self.owner(owner));
                }
                Reply::Done
            }
            Request::Store { pin, offset, bytes } => self.store_inline(pin, offset, &bytes)?,
            Request::Release { pins, stores } => self.release(&pins, stores, descriptors)?,
            Request::Frames { pin, first_folio, known } => {
                return self.frames(pin, first_folio, &known);
            }
            Request::Fault { pin, at } => self.fault(pin, at)?,
            Request::Read { file, offset, bytes, owner } => {
                let file = self.held.file(file)?;
                let end = offset.saturating_add(u64::from(bytes));
                let mut data = vec![0; bytes as usize];
                let owner = self.owner(owner);
                let read = failed(file.read_at(&mut data, &(offset..end), owner))?;
                data.truncate(read);
                Reply::Data(data)
            }
            Request::Change { file, change, owner } => {
                let file = self.writable(file)?;
                let memory = match &change {
                    wire::Change::WriteMemory { bytes, .. } => {
                        let fd = descriptors.into_iter().next();
                        let memory = fd.map(|fd| SealedMemory::check(fd, *bytes)).transpose();
                        memory.map_err(|e| Failure::Protocol(format!("a write: {e}")))?
                    }
                    _ => None,
                };
                let change = failed(translate::change_in(&change, memory.as_ref()))?;
                failed(file.change(&change, self.owner(owner)))?;
                Reply::Done
            }
            Request::Flush { file, span, owner } => {
                let file = self.held.file(file)?;
                Reply::Bytes(failed(file.flush(span.range(), self.owner(owner)))?)
            }
            Request::Sync { file, span, data_only, owner } => {
                let file = self.held.file(file)?;
                failed(file.sync(span.range(), data_only, self.owner(owner)))?;
                Reply::Done
            }
            Request::Prefetch { file, span } => {
                Reply::Bytes(failed(self.held.file(file)?.prefetch(span.range(), None))?)
            }
            Request::Evict { file, span } => {
                Reply::Bytes(failed(self.held.file(file)?.evict(span.range()))?)
            }
            Request::Drop { file } => {
                Reply::Bytes(failed(self.held.file(file)?.evict(0..u64::MAX))?)
            }
            Request::Coherence { file } => {
                let coherence = failed(self.held.file(file)?.coherence())?;
                Reply::Coherence(translate::coherence_out(coherence))
            }
            Request::Placement { file, span } => {
                let runs = failed(self.held.file(file)?.placement(span.range()))?;
                let fit = runs.iter().take(wire::PLACEMENT_RUNS_MAX);
                Reply::Placement(fit.map(translate::run_out).collect())
            }
            Request::Description { file } => return self.description(file),
            Request::Callbacks => return self.make_callbacks(),
            Request::MapIn { map, file, span, writable } => {
                self.map_in(map, file, span, writable)?
            }
            Request::MapOut { map } => self.map_out(map)?,
            Request::Touch { map, at, owner, expel } => self.touch(map, at, owner, expel)?,
            Request::FlushAll { owner } => self.flush_all(owner)?,
            Request::Stats => Reply::Stats(counters(&self.daemon.cache.stats())),
            Request::Usage => Reply::Usage {
                used_bytes: self.daemon.cache.used_bytes(),
                memory_bytes: self.daemon.cache.memory_bytes(),
                sessions: self.daemon.sessions.lock().open.len() as u64,
            },
            Request::Sessions { after } => self.sessions(after),
        };
        Ok(reply.into())
    }

    /// A thread of the client's, unlike those of any other and of this process.
    pub(super) fn owner(&self, thread: Option<u32>) -> pageferry_engine::Owner {
        thread.map(|thread| self.number << 32 | u64::from(thread))
    }

    pub(super) fn writable(&self, file: FileId) -> Result<Arc<OpenFile>, Failure> {
        let file = self.held.file(file)?;
        match file.is_writable() {
            true => Ok(file),
            false => Err(Failure::ReadOnly(file.name().into())),
        }
    }

    fn welcome(&self, version: u32) -> Result<Reply, Failure> {
        if version != wire::VERSION {
            return Err(Failure::Version { daemon: wire::VERSION });
        }
        let limits = self.daemon.limits.read();
        Ok(Reply::Welcome {
            version: wire::VERSION,
            session: self.number,
            device: translate::device_out(&self.daemon.cache.shared.info),
            memory_bytes: self.daemon.cache.memory_bytes(),
            limits: wire::Limits {
                files: limits.files as u64,
                pins: limits.pins as u64,
                pinned_bytes: limits.pinned_bytes,
                requests: limits.requests as u64,
            },
        })
    }

    /// What the client may do with the file, its descriptor shows.
    fn open_file(
        &self,
        name: &str,
        writable: bool,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Reply, Failure> {
        let limits = self.daemon.limits.read().clone();
        let fd = descriptors.first().ok_or_else(|| Failure::Protocol("no descriptor".into()))?;
        // Before anything asks the file system: one that does not answer would hold this thread.
        let served = file_system_served_to(fd.as_fd(), self.peer.pid)
            .map_err(|e| os_error("finding the file's file system", &e));
        let by_others = match failed(served)? {
            Served::ByKernel => None,
            Served::ByOthers(kind) => Some(kind),
            // It may be of FUSE, and unmounted, or mounted where only its server sees it.
            Served::Unknown => Some("a file system that is not mounted here".into()),
        };
        if let (Some(kind), false) = (by_others, limits.served_file_systems) {
            return Err(Failure::Unsupported(format!(
                "{name} is on {kind}, which another process or machine serves that may never answer; \
                 the daemon takes such files if its limit served_file_systems says so"
            )));
        }
        let opening = failed(self.daemon.cache.open_fd_as(fd.as_fd(), name.into()))?;
        let opening = opening.for_another(Arc::clone(&self.gone));
        let file = OpenFile::new(opening);
        if writable && !file.is_writable() {
            return Err(Failure::ReadOnly(name.into()));
        }
        self.daemon.kept.keep(&file);
        Ok(Reply::Opened { file: self.held.add_file(file, &limits)? })
    }

    /// With the last client's opening of a file everything goes home, as if it were closed; copies stay.
    pub(super) fn close_file(&self, file: Arc<OpenFile>) -> Result<(), Failure> {
        let home = match file.is_shared_by_more_than(2) {
            true => Ok(0),
            false => file.flush(0..u64::MAX, None),
        };
        let key = file.key();
        drop(file);
        self.daemon.kept.closed(key);
        failed(home.map(drop))
    }

    fn pin(
        &self,
        file: FileId,
        spans: &[Span],
        mode: wire::Mode,
        wait: wire::Wait,
        owner: Option<u32>,
    ) -> Result<Reply, Failure> {
        let mode = translate::mode_in(mode);
        let file = match mode {
            PinMode::Read => self.held.file(file)?,
            PinMode::Write | PinMode::Overwrite => self.writable(file)?,
        };
        let ranges: Vec<_> = spans.iter().map(|span| span.range()).collect();
        let limits = self.daemon.limits.read().clone();
        let too_much =
            || super::limits::beyond("bytes under pins of a session", limits.pinned_bytes);
        let bytes = total(&ranges).ok_or_else(too_much)?;
        let expected = self.held.expect_pins(ranges.len(), bytes, &limits)?;
        let allowance = self.daemon.users.pin(self.peer.uid, bytes, &limits)?;
        let keys = file.pin(&ranges, mode, translate::wait_in(wait), self.owner(owner));
        let pins = expected.granted(&file, &ranges, &failed(keys)?, mode);
        allowance.keep();
        Ok(Reply::Pinned { pins, layout: file.layout() })
    }

    /// Handles to the memory of folios that the pin holds bytes of.
    fn frames(&self, pin: PinId, first_folio: u64, known: &[u64]) -> Result<Answer, Failure> {
        let pin = self.held.pin(pin)?;
        // It does not end meanwhile: its folios keep their frames.
        let key = pin.key.read();
        let layout = pin.file.layout();
        let frame_bytes = self.daemon.cache.shared.info.frame_bytes;
        let (mut serials, mut memories) = (Vec::new(), Vec::new());
        for i in 0..known.len() as u64 {
            let folio = first_folio.saturating_add(i);
            let start = folio.saturating_mul(frame_bytes);
            let held = key.is_some()
                && start < pin.range.end
                && pin.range.start < start.saturating_add(frame_bytes);
            let exported = if held { failed(pin.file.export(folio))? } else { None };
            let (serial, memory) = exported.map_or((0, None), |e| (e.serial, Some(e.memory)));
            serials.push(serial);
            memories.push(memory);
        }
        let sent: Vec<usize> = frames_sent(known, &serials).collect();
        let descriptors = sent.into_iter().filter_map(|i| memories[i].take()).collect();
        Ok(Answer { reply: Reply::Frames { layout, serials }, descriptors })
    }

    /// A page that the client could not load: it can be loaded now, or there is a reason why not.
    fn fault(&self, pin: PinId, at: u64) -> Result<Reply, Failure> {
        let pin = self.held.pin(pin)?;
        let key = pin.key.read();
        let Some(key) = *key else {
            return Err(Failure::InvalidArgument("the pin is released".into()));
        };
        if !pin.range.contains(&at) {
            return Err(translate::failure(Error::OutsidePin {
                access: "load",
                range: at..at.saturating_add(1),
                pinned: pin.range.clone(),
                mode: if pin.mode == PinMode::Read { "read" } else { "write" },
            }));
        }
        let mut byte = [0];
        let load = &mut Piece::Load(&mut byte, pageferry_device::Access::Read);
        failed(pin.file.access(key, at..at + 1, load))?;
        Ok(Reply::Done)
    }

    fn flush_all(&self, owner: Option<u32>) -> Result<Reply, Failure> {
        let (mut bytes, mut failure) = (0, None);
        for file in self.held.files() {
            match file.flush(0..u64::MAX, self.owner(owner)) {
                Ok(written) => bytes += written,
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        failed(failure.map_or(Ok(Reply::Bytes(bytes)), Err))
    }

    /// Sessions that the client may know of: its user's, or all if it is the daemon's own user or root.
    fn sessions(&self, after: u64) -> Reply {
        let all = self.is_trusted();
        let sessions = self.daemon.sessions.lock();
        let later = sessions.open.range(after.saturating_add(1)..).map(|(_, session)| session);
        let mut told = later.filter(|session| all || session.peer.uid == self.peer.uid);
        let page: Vec<_> = told.by_ref().take(wire::SESSIONS_MAX).map(|s| s.in_use()).collect();
        Reply::Sessions { sessions: page, more: told.next().is_some() }
    }

    fn in_use(&self) -> SessionUse {
        let held = self.held.counts();
        SessionUse {
            session: self.number,
            pid: self.peer.pid,
            uid: self.peer.uid,
            program: self.program.clone(),
            files: held.files,
            pins: held.pins,
            pinned_bytes: held.pinned_bytes,
            requests: self.requests() as u64,
        }
    }
}

fn counters(stats: &Stats) -> Vec<wire::Counter> {
    let counter = |c: &crate::Counter| wire::Counter {
        name: c.name.into(),
        unit: c.unit.into(),
        help: c.help.into(),
        value: c.value,
    };
    stats.counters().iter().map(counter).collect()
}
