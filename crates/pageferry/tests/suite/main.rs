//! The promises of SEMANTICS.md on a real kernel, with the software device.

/// Says that a test could not be made here, past the runner's capture: a skip is never silent.
#[macro_export]
macro_rules! skipped {
    ($($why:tt)*) => {{
        use std::io::Write;
        // Nobody to tell is no reason to fail.
        let _ = writeln!(std::io::stderr(), "skipped: {}", format_args!($($why)*));
    }};
}

/// These tests are of a cache in this process; `tests/connected` has them of a daemon's.
const CONNECTED: bool = false;

mod calls;
mod changes;
mod children;
mod common;
mod cuts;
mod descriptors;
mod detours;
mod disguises;
mod failures;
mod fuse;
mod guards;
mod kernel;
mod mapping;
mod mount;
mod outsiders;
mod parts;
mod pins;
mod proofs;
mod rfc;
mod slow;
mod stranger;
mod strangers;
mod stress;
mod views;
mod vmas;
mod ways;
