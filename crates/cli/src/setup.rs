//! A cache on a software device, as the commands want it, or a daemon's.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{Cache, CacheConfig, Coherence, Guard, Validation};

use crate::args::GuardName;

/// A device of so much memory and a cache over all of it.
pub(crate) fn cache(
    memory: u64,
    frame: u64,
    flush_age: Option<Duration>,
) -> anyhow::Result<(Cache, Arc<SoftDevice>)> {
    cache_with(memory, frame, CacheConfig::default().flush_age(flush_age))
}

/// As [`cache`], with settings.
pub(crate) fn cache_with(
    memory: u64,
    frame: u64,
    config: CacheConfig,
) -> anyhow::Result<(Cache, Arc<SoftDevice>)> {
    let soft = SoftConfig { frame_bytes: frame, capacity_bytes: memory, ..SoftConfig::default() };
    let device = Arc::new(SoftDevice::new(soft).context("making the software device")?);
    let cache = Cache::new(device.clone(), config).context("opening the cache")?;
    Ok((cache, device))
}

/// The cache that the options of `run`, `stat` and `where` ask for: the daemon's, or else a new one's.
pub(crate) fn connect_or(
    daemon: Option<&Path>,
    own: impl FnOnce() -> anyhow::Result<(Cache, Arc<SoftDevice>)>,
) -> anyhow::Result<Cache> {
    match daemon {
        Some(path) => Ok(Cache::connect(path)?),
        None => own().map(|(cache, _)| cache),
    }
}

/// Settings as options give them; a flush age of 0 is none.
pub(crate) fn config(guard: GuardName, trust_stamps: bool, flush_age: f64) -> CacheConfig {
    let guard = match guard {
        GuardName::None => Guard::None,
        GuardName::Lease => Guard::Lease,
        GuardName::Fanotify => Guard::Fanotify,
        GuardName::Auto => Guard::Auto,
    };
    let validation = if trust_stamps { Validation::Stamps } else { Validation::Proof };
    let age = (flush_age > 0.0).then(|| Duration::from_secs_f64(flush_age));
    CacheConfig::default().flush_age(age).guard(guard).validation(validation)
}

/// A word for what copies of a file rest on, and a sentence.
pub(crate) fn trust(coherence: &Coherence) -> (&'static str, String) {
    match coherence {
        Coherence::Fixed => ("fixed", "nobody can change it: copies serve for ever".into()),
        Coherence::Proven => {
            ("proven", "copies serve until somebody may have changed it, which is noticed".into())
        }
        Coherence::Stamps => ("stamps", "copies serve while its size and times stay".into()),
        Coherence::Unproven(why) => ("unproven", format!("each pin copies again: {why}")),
        _ => ("unknown", "no more is known".into()),
    }
}

/// The usual flush age.
pub(crate) const FLUSH_AGE: Option<Duration> = Some(Duration::from_secs(5));

/// Bytes that only the device has and that a last try cannot write back: they go with the cache, which is this
/// process's own.
pub(crate) fn lost_bytes(cache: &Cache) -> u64 {
    match cache.flush() {
        Ok(_) => 0,
        Err(_) => cache.stats().get("away_bytes").unwrap_or(0),
    }
}
