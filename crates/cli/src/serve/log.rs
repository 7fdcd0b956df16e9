//! The daemon's log.

use std::io::{self, IsTerminal};

use anyhow::{Context, anyhow};
use tracing_subscriber::filter::LevelFilter;

/// Which variable says how much is logged.
const LEVEL: &str = "PAGEFERRY_LOG";

/// Logs to standard error from now on, lines for people or JSON objects.
pub(super) fn start(json: bool) -> anyhow::Result<()> {
    let level = match std::env::var(LEVEL) {
        Ok(text) if !text.is_empty() => text.parse().map_err(|_| {
            anyhow!("{LEVEL} is '{text}': it takes error, warn, info, debug, trace or off")
        })?,
        _ => LevelFilter::INFO,
    };
    // Nobody is there to be told that nobody reads the log.
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .log_internal_errors(false);
    let started = match json {
        true => log.json().flatten_event(true).with_current_span(false).try_init(),
        false => log.with_ansi(io::stderr().is_terminal()).with_target(false).try_init(),
    };
    started.map_err(|error| anyhow!(error)).context("starting the log")
}
