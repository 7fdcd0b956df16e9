//! Sees that a step hangs, and says which.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A thread that looks every second. A hang cannot be undone from outside, so it ends the process.
pub(crate) struct Watchdog {
    now: Arc<Mutex<Option<(Instant, String)>>>,
}

impl Watchdog {
    /// `on_hang` is told the step; then the process ends with status 1.
    pub(crate) fn start(limit: Duration, on_hang: impl Fn(&str) + Send + 'static) -> Watchdog {
        let now: Arc<Mutex<Option<(Instant, String)>>> = Arc::default();
        let watched = Arc::clone(&now);
        // It lives as long as the process.
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(500));
                let late = watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some((since, step)) = late.filter(|(since, _)| since.elapsed() > limit) {
                    on_hang(&format!("{step} hangs for {} s", since.elapsed().as_secs()));
                    std::process::exit(1);
                }
            }
        });
        Watchdog { now }
    }

    fn set(&self, now: Option<(Instant, String)>) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    pub(crate) fn watch(&self, step: usize, op: &(impl Display + ?Sized)) {
        self.set(Some((Instant::now(), format!("step {}: {op}", step + 1))));
    }

    pub(crate) fn rest(&self) {
        self.set(None);
    }
}
