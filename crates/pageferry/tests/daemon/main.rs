//! The daemon as an attacker sees it: raw sockets that say what they like, and processes that die where they like.
//! `docs/security.md` names these tests.

/// Says that a test could not be made here, past the runner's capture: a skip is never silent.
#[macro_export]
macro_rules! skipped {
    ($($why:tt)*) => {{
        use std::io::Write;
        // Nobody to tell is no reason to fail.
        let _ = writeln!(std::io::stderr(), "skipped: {}", format_args!($($why)*));
    }};
}

/// See `tests/suite/common.rs`.
const CONNECTED: bool = true;

mod access;
mod children;
#[path = "../suite/common.rs"]
mod common;
mod descriptors;
mod frames;
mod limits;
mod messages;
mod raw;
mod silent;
mod stores;
mod stuck;
mod users;
