//! A cache on a software device, as the commands want it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{Cache, CacheConfig};

/// A device of so much memory and a cache over all of it.
pub(crate) fn cache(
    memory: u64,
    frame: u64,
    flush_age: Option<Duration>,
) -> anyhow::Result<(Cache, Arc<SoftDevice>)> {
    let soft = SoftConfig { frame_bytes: frame, capacity_bytes: memory, ..SoftConfig::default() };
    let device = Arc::new(SoftDevice::new(soft).context("making the software device")?);
    let config = CacheConfig::default().flush_age(flush_age);
    let cache = Cache::new(device.clone(), config).context("opening the cache")?;
    Ok((cache, device))
}

/// The usual flush age.
pub(crate) const FLUSH_AGE: Option<Duration> = Some(Duration::from_secs(5));

/// Bytes that only the device has and that a last try cannot write back: they go with the cache.
pub(crate) fn lost_bytes(cache: &Cache) -> u64 {
    match cache.flush() {
        Ok(_) => 0,
        Err(_) => cache.stats().get("away_bytes").unwrap_or(0),
    }
}
