//! Windows of our own changes.

use std::ops::DerefMut;
use std::sync::Arc;
use std::time::Instant;

use pageferry_engine::FileKey;
use pageferry_linux::{FileStamp, HostFile, Watch, current_tid};

use super::look::LEASE_MIN;
use super::{Basis, Guards, State, gone, stamp};
use crate::Result;
use crate::perform::measure;

impl Guards {
    /// Makes a change of ours. The file's size after it comes with what it yields.
    pub(crate) fn change<T>(
        &self,
        file: FileKey,
        change: impl FnOnce(&HostFile) -> T,
    ) -> Result<(T, u64)> {
        let io = self.begin(file)?;
        let window = Window { guards: self, file: Some(file) };
        let made = change(&io);
        Ok((made, window.end()?))
    }

    fn begin(&self, file: FileKey) -> Result<Arc<HostFile>> {
        let mut state = self.state.lock();
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        if watched.own == 0 && matches!(watched.basis, Basis::Stamps(_)) {
            let io = Arc::clone(&watched.io);
            drop(state);
            let seen = measure(&io)?;
            state = self.state.lock();
            // A change of ours that runs by now has looked before it began.
            state.files.get_mut(&file).ok_or_else(gone)?.learn(&seen);
        }
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        if watched.own == 0 {
            if matches!(watched.basis, Basis::Watch(_)) {
                // Whether others have stored to it, its times tell only until we change it.
                self.hear(&mut state);
                let watched = state.files.get_mut(&file).ok_or_else(gone)?;
                if watched.suspect && watched.proven {
                    self.settle(&mut state, file, false)?;
                }
            }
            self.open_window(&mut state, file)?;
        }
        if self.tells_threads() {
            // What this thread has done before is not this change.
            self.hear(&mut state);
        }
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        watched.own += 1;
        watched.threads.push(current_tid());
        Ok(Arc::clone(&watched.io))
    }

    fn tells_threads(&self) -> bool {
        self.watch.as_ref().is_ok_and(Watch::tells_threads)
    }

    /// Takes the lease for as long as changes of ours run. What is heard before it is held came from
    /// others; without it, what is heard of us could be the application's doing, and counts as well.
    fn open_window(&self, state: &mut State, file: FileKey) -> Result<()> {
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        let (Basis::Watch(_), Ok(watch)) = (&watched.basis, &self.watch) else { return Ok(()) };
        if watch.tells_threads() {
            return Ok(());
        }
        let leased = match watched.held {
            // Noticed by the thread that is told of it, a moment ago; or it may be long over.
            true => {
                watched.io.has_lease() || watched.breaking.is_some_and(|b| b.elapsed() < LEASE_MIN)
            }
            false => watched.io.take_lease().is_ok(),
        };
        watched.since = Instant::now();
        state.hear(watch);
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        watched.leased = leased;
        watched.visited |= !leased;
        Ok(())
    }

    /// The state, at the end of a change, and how the file looks after it. A server may never answer that, and no
    /// other file is to wait for it: it is asked before the lock is taken. `None` of a watched file, whose proof
    /// rests on how it looks under the lock, after what was heard.
    fn looked_at_end(
        &self,
        file: FileKey,
    ) -> Result<(impl DerefMut<Target = State> + '_, Option<Result<FileStamp>>)> {
        loop {
            let state = self.state.lock();
            let watched = state.files.get(&file).ok_or_else(gone)?;
            if matches!(watched.basis, Basis::Watch(_)) {
                return Ok((state, None));
            }
            let (io, ends) = (Arc::clone(&watched.io), watched.ends);
            drop(state);
            let seen = measure(&io);
            drop(io);
            let state = self.state.lock();
            let watched = state.files.get(&file).ok_or_else(gone)?;
            // What it looks like after the last of several changes is not what one looked like that ended before.
            let stale = watched.own == 1 && watched.ends != ends;
            if !(stale && matches!(watched.basis, Basis::Stamps(_))) {
                return Ok((state, Some(seen)));
            }
        }
    }

    fn end(&self, file: FileKey) -> Result<u64> {
        let (mut state, looked) = self.looked_at_end(file)?;
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        let last = watched.own == 1;
        if last && watched.leased {
            // Somebody may wait for its end; if for too long, it has gone ahead beside our changes.
            watched.changed |= !watched.shuts_out(watched.since);
            self.hear(&mut state);
        } else if self.tells_threads() {
            self.hear(&mut state);
        }
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        let seen = looked.unwrap_or_else(|| measure(&watched.io));
        if last && std::mem::take(&mut watched.leased) && !watched.held {
            watched.io.drop_lease();
        }
        if last && watched.home {
            watched.give_up();
        }
        watched.own -= 1;
        watched.ends += 1;
        let me = current_tid();
        if let Some(at) = watched.threads.iter().position(|t| *t == me) {
            watched.threads.swap_remove(at);
        }
        let seen = seen?;
        watched.resized(seen.size);
        watched.when_alone = None;
        if watched.own == 0 && watched.proven {
            // Who opened it before that look is heard of now.
            self.hear(&mut state);
            let watched = state.files.get_mut(&file).ok_or_else(gone)?;
            let alone = watched.proven && watched.is_quiet() && !watched.has_strangers();
            watched.when_alone = (alone && seen.is_fine()).then(|| stamp(&seen));
        }
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        if let (Basis::Stamps(known), 0) = (&mut watched.basis, watched.own) {
            *known = stamp(&seen);
        }
        Ok(seen.size)
    }
}

/// Changes of ours under way.
struct Window<'g> {
    guards: &'g Guards,
    file: Option<FileKey>,
}

impl Window<'_> {
    fn end(mut self) -> Result<u64> {
        self.file.take().map_or_else(|| Err(gone()), |file| self.guards.end(file))
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        // The change has panicked.
        if let Some(file) = self.file.take() {
            let _ = self.guards.end(file);
        }
    }
}
