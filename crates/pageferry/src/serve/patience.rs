//! How long others wait for one client.
//!
//! What a request needs of a client's mappings is asked one thing after the other, perhaps many: it is their sum that
//! is limited, and not each. So each thread counts for itself what it has waited for each client, within the request
//! that it sees to. That includes the time in which other threads ask the same client, so that a client that is slow
//! with many of them is out of patience with the first that has waited too long, whoever it has answered meanwhile.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a thread waits for one client's answers within a request.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// An answer that takes no longer does not count: a client that is as quick as it can be may be asked any number of
/// things.
const QUICK: Duration = Duration::from_millis(1);
/// Threads that answer no requests (those that write back by age, and guard files) begin anew so often.
const ANEW: Duration = Duration::from_secs(60);

struct Waited {
    since: Instant,
    /// By session.
    times: HashMap<u64, Duration>,
}

thread_local! {
    static WAITED: RefCell<Waited> =
        RefCell::new(Waited { since: Instant::now(), times: HashMap::new() });
}

impl Waited {
    fn begin(&mut self) {
        self.since = Instant::now();
        self.times.clear();
    }
}

/// This thread begins with a request.
pub(super) fn begin() {
    WAITED.with_borrow_mut(Waited::begin);
}

/// A wait for a client that has begun.
pub(super) struct Waiting {
    session: u64,
    before: Duration,
    since: Instant,
}

impl Waiting {
    pub(super) fn begin(session: u64) -> Waiting {
        let before = WAITED.with_borrow_mut(|waited| {
            if waited.since.elapsed() > ANEW {
                waited.begin();
            }
            waited.times.get(&session).copied().unwrap_or_default()
        });
        Waiting { session, before, since: Instant::now() }
    }

    /// How much longer it may be; `None`: no longer.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = PATIENCE.checked_sub(self.before + self.since.elapsed());
        left.filter(|left| !left.is_zero())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waited = self.since.elapsed().saturating_sub(QUICK);
        WAITED.with_borrow_mut(|all| *all.times.entry(self.session).or_default() += waited);
    }
}
