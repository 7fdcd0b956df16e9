//! Sees that a step hangs, and says which.

use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A thread that looks now and then. A hang cannot be undone from outside, so it ends the process.
pub(crate) struct Watchdog {
    watched: Arc<Mutex<Watched>>,
}

#[derive(Default)]
struct Watched {
    since: Option<Instant>,
    /// The sequence so far, as text.
    lines: Vec<String>,
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchdog {
    /// `on_hang` is told the sequence so far; then the process ends with status 1.
    pub(crate) fn start(limit: Duration, on_hang: impl Fn(&[String]) + Send + 'static) -> Watchdog {
        let watched: Arc<Mutex<Watched>> = Arc::default();
        let ours = Arc::clone(&watched);
        // It lives as long as the process.
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(200));
                let watched = lock(&ours);
                if watched.since.is_some_and(|since| since.elapsed() > limit) {
                    on_hang(&watched.lines);
                    std::process::exit(1);
                }
            }
        });
        Watchdog { watched }
    }

    /// A new sequence begins.
    pub(crate) fn begin(&self, settings: &impl Display) {
        let mut watched = lock(&self.watched);
        watched.lines = vec![settings.to_string()];
        watched.since = Some(Instant::now());
    }

    /// A step begins.
    pub(crate) fn watch(&self, op: &impl Display) {
        let mut watched = lock(&self.watched);
        watched.lines.push(op.to_string());
        watched.since = Some(Instant::now());
    }

    /// The sequence is over.
    pub(crate) fn rest(&self) {
        lock(&self.watched).since = None;
    }
}
