//! A link of limited speed: latency per copy, bandwidth shared by all.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub(crate) struct Pacing {
    latency: Duration,
    bytes_per_s: Option<u64>,
    /// When the link is free again.
    free_at: Mutex<Option<Instant>>,
}

impl Pacing {
    pub(crate) fn new(latency: Duration, bytes_per_s: Option<u64>) -> Pacing {
        Pacing { latency, bytes_per_s, free_at: Mutex::new(None) }
    }

    /// When a copy of `bytes` that begins at `now` ends; takes the link for it.
    fn reserve(&self, bytes: u64, now: Instant) -> Instant {
        let Some(rate) = self.bytes_per_s else { return now + self.latency };
        let busy = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut free_at = self.free_at.lock();
        let end = free_at.map_or(now, |at| at.max(now)) + busy;
        *free_at = Some(end);
        end + self.latency
    }

    /// Blocks for as long as the copy takes on this link.
    pub(crate) fn pay(&self, bytes: u64) {
        if self.latency.is_zero() && self.bytes_per_s.is_none() {
            return;
        }
        let now = Instant::now();
        std::thread::sleep(self.reserve(bytes, now).saturating_duration_since(now));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn copies_share_the_bandwidth_and_pay_the_latency_each() {
        let link = Pacing::new(Duration::from_millis(3), Some(1000));
        let now = Instant::now();
        assert_eq!(link.reserve(500, now) - now, Duration::from_millis(503));
        assert_eq!(link.reserve(500, now) - now, Duration::from_millis(1003));
        let later = now + Duration::from_secs(9);
        assert_eq!(link.reserve(1000, later) - later, Duration::from_millis(1003));
    }
}
