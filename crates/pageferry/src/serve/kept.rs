//! Files that stay open though no client has them open: their copies serve the next one.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pageferry_engine::FileKey;

use crate::embedded::Opening;
use crate::service::FileService;
use crate::sync::Mutex;

/// An opening that is closed with its last user. What cannot be written back then stays with the cache,
/// which tries again.
pub(super) struct OpenFile(Opening);

impl OpenFile {
    pub(super) fn new(opening: Opening) -> OpenFile {
        OpenFile(opening)
    }
}

impl std::ops::Deref for OpenFile {
    type Target = Opening;

    fn deref(&self) -> &Opening {
        &self.0
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let file = self.0.name();
        // It may be dropped because something panics already, or with many others.
        match catch_unwind(AssertUnwindSafe(|| self.0.close())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(file, %error, "closing could not write everything back; the cache tries again");
            }
            Err(_) => tracing::error!(file, "closing panicked"),
        }
    }
}

/// The daemon's own openings, one for each file that a client has opened.
#[derive(Default)]
pub(super) struct Kept(Mutex<Files>);

#[derive(Default)]
struct Files {
    /// With the time of the last opening by a client.
    open: HashMap<FileKey, (Arc<OpenFile>, u64)>,
    clock: u64,
}

impl Files {
    /// Takes one off, unless somebody has opened it since.
    fn take(&mut self, key: FileKey, used: u64) -> Option<Arc<OpenFile>> {
        let still = self.open.get(&key).is_some_and(|(_, now)| *now == used);
        if still { self.open.remove(&key).map(|(file, _)| file) } else { None }
    }
}

impl Kept {
    /// A client has opened the file.
    pub(super) fn keep(&self, opening: &Opening) {
        let mut files = self.0.lock();
        files.clock += 1;
        let now = files.clock;
        match files.open.get_mut(&opening.key()) {
            Some((_, used)) => *used = now,
            None => {
                let file = Arc::new(OpenFile::new(opening.again()));
                files.open.insert(opening.key(), (file, now));
            }
        }
    }

    /// A client has closed a file: if there is nothing to keep it for, it is not kept.
    pub(super) fn closed(&self, key: FileKey) {
        let Some((file, used)) = self.0.lock().open.get(&key).cloned() else { return };
        if file.is_shared_by_more_than(1) || file.is_served() {
            return;
        }
        // Closing takes its time: not under the lock.
        let closing = self.0.lock().take(key, used);
        drop(closing);
    }

    /// Closes those that no client has open and of which nothing is left to be served: the device has no page
    /// of them, or they have no name any more. And, if there are too many, those that have not been opened for the
    /// longest time.
    pub(super) fn tidy(&self, max: usize) {
        let alone = |file: &OpenFile| !file.is_shared_by_more_than(1);
        let idle: Vec<_> = {
            let files = self.0.lock();
            let idle = files.open.iter().filter(|(_, (file, _))| alone(file));
            idle.map(|(key, (file, used))| (*used, *key, Arc::clone(file))).collect()
        };
        // Asks the file system, which may take its time; nobody is to wait for that.
        let (mut served, mut over): (Vec<_>, Vec<_>) =
            idle.into_iter().partition(|(_, _, file)| file.is_served());
        served.sort_unstable_by_key(|(used, key, _)| (*used, *key));
        let mut files = self.0.lock();
        let surplus = files.open.len().saturating_sub(over.len()).saturating_sub(max);
        over.extend(served.into_iter().take(surplus));
        let closing: Vec<_> =
            over.iter().filter_map(|(used, key, _)| files.take(*key, *used)).collect();
        drop(files);
        drop((closing, over));
    }

    pub(super) fn close_all(&self) {
        let closing = std::mem::take(&mut self.0.lock().open);
        drop(closing);
    }
}
