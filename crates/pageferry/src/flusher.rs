//! The flusher: away pages do not stay away longer than the flush age.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pageferry_engine::FileKey;

use crate::error::os_error;
use crate::shared::{Caller, Shared, Tally};
use crate::{Result, Wait};

/// Starts the flusher of a cache. It ends when the cache is stopping.
pub(crate) fn start(shared: Arc<Shared>, age: Duration) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("pageferry-flush".into())
        .spawn(move || run(&shared, age))
        .map_err(|e| os_error("starting the flusher", &e))
}

fn run(shared: &Shared, age: Duration) {
    // Often enough that a page's stay exceeds the age by a quarter at most.
    let nap = (age / 4).max(Duration::from_millis(1));
    loop {
        let until = Instant::now() + nap;
        let mut core = shared.core.lock();
        while !core.stopping && Instant::now() < until {
            shared.changed.wait_until(&mut core, until);
        }
        if core.stopping {
            return;
        }
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let Some(since) = shared.now().checked_sub(age_ms) else { continue };
        let files: Vec<FileKey> = core.engine.files().collect();
        let aged: Vec<_> = files
            .into_iter()
            .flat_map(|file| core.engine.aged(file, since).into_iter().map(move |r| (file, r)))
            .collect();
        drop(core);
        for (file, range) in aged {
            Tally::add(&shared.tally.flusher_runs, 1);
            let caller = Caller::this_thread();
            if let Err(error) = shared.flush(file, range.clone(), true, caller, Wait::Block) {
                Tally::add(&shared.tally.flusher_failures, 1);
                tracing::warn!(?range, %error, "the flusher will try again");
            }
        }
    }
}
