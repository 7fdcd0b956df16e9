//! The daemon as an attacker sees it: raw sockets that say what they like, and processes that die where they like.
//! `docs/security.md` names these tests.
#![allow(clippy::single_range_in_vec_init, reason = "a list of one run is meant")]

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
mod clumsy;
#[path = "../suite/common.rs"]
mod common;
mod descriptors;
mod frames;
mod fuzz;
mod killed;
mod limits;
mod maps;
mod messages;
mod raw;
mod relay;
mod served;
mod silent;
mod steps;
mod stores;
mod stuck;
mod unread;
mod users;
