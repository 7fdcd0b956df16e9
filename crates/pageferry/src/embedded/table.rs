//! Which files a cache has open.
//!
//! Who opens or closes a file decides that under one lock, and asks nobody while it is held: a server or a device that
//! takes its time holds up its own files and no others.

use std::collections::HashMap;
use std::sync::Arc;

use pageferry_linux::{FileId, HostFile};

use crate::Result;
use crate::backing::Backing;
use crate::sync::{Condvar, Mutex};

enum Known {
    Open(Arc<Backing>),
    /// Its last handle is gone and all goes home. Whoever wants it waits until it is clear what becomes of it.
    Closing,
}

#[derive(Default)]
pub(super) struct Table {
    files: Mutex<HashMap<FileId, Known>>,
    /// A file is no longer being closed.
    closed: Condvar,
}

impl Table {
    /// One handle more of a file, if it is open and suits.
    pub(super) fn hold(
        &self,
        id: FileId,
        suits: impl FnOnce(&Backing) -> bool,
    ) -> Option<Arc<Backing>> {
        self.settled(id, |files| match files.get(&id) {
            Some(Known::Open(backing)) if suits(backing) => Some(held(backing)),
            _ => None,
        })
    }

    /// One handle more of a file, which is made if another has not been faster. `true`: it was made; `None`: it could
    /// not be.
    pub(super) fn hold_or_make(
        &self,
        id: FileId,
        make: impl FnOnce() -> Option<Arc<Backing>>,
    ) -> Option<(Arc<Backing>, bool)> {
        self.settled(id, |files| {
            if let Some(Known::Open(backing)) = files.get(&id) {
                return Some((held(backing), false));
            }
            let made = make()?;
            files.insert(id, Known::Open(Arc::clone(&made)));
            Some((held(&made), true))
        })
    }

    /// Looks at the files when that one is not being closed.
    fn settled<T>(&self, id: FileId, look: impl FnOnce(&mut HashMap<FileId, Known>) -> T) -> T {
        let mut files = self.files.lock();
        while matches!(files.get(&id), Some(Known::Closing)) {
            self.closed.wait(&mut files);
        }
        look(&mut files)
    }

    /// One handle less. With the last one the file is closed; if that fails, it stays.
    pub(super) fn release(
        &self,
        backing: &Arc<Backing>,
        close: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let id = backing.io().identity();
        {
            let mut files = self.files.lock();
            let mut handles = backing.handles.lock();
            *handles -= 1;
            if *handles > 0 {
                return Ok(());
            }
            files.insert(id, Known::Closing);
        }
        let mut leaving = Leaving { table: self, backing, id, closed: false };
        close()?;
        leaving.closed = true;
        Ok(())
    }

    /// Another description of a file takes over from `old`, unless one has already; `told` of it before the next may.
    pub(super) fn take_over(
        &self,
        backing: &Backing,
        old: &Arc<HostFile>,
        new: &Arc<HostFile>,
        told: impl FnOnce(),
    ) -> bool {
        let _files = self.files.lock();
        let taken = backing.replace(old, new);
        if taken {
            told();
        }
        taken
    }
}

fn held(backing: &Arc<Backing>) -> Arc<Backing> {
    *backing.handles.lock() += 1;
    Arc::clone(backing)
}

/// A file that is being closed: it is told what became of it, also if closing it panics.
struct Leaving<'t> {
    table: &'t Table,
    backing: &'t Arc<Backing>,
    id: FileId,
    closed: bool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut files = self.table.files.lock();
        if self.closed {
            files.remove(&self.id);
        } else {
            files.insert(self.id, Known::Open(Arc::clone(self.backing)));
        }
        self.table.closed.notify_all();
    }
}
