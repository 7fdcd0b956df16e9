//! The tests of the suite, of a cache that a daemon has.

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

mod crowded;
mod delayed;

#[path = "../suite/calls.rs"]
mod calls;
#[path = "../suite/changes.rs"]
mod changes;
#[path = "../suite/children.rs"]
mod children;
#[path = "../suite/common.rs"]
mod common;
#[path = "../suite/cuts.rs"]
mod cuts;
#[path = "../suite/descriptors.rs"]
mod descriptors;
#[path = "../suite/detours.rs"]
mod detours;
#[path = "../suite/disguises.rs"]
mod disguises;
#[path = "../suite/failures.rs"]
mod failures;
#[path = "../suite/fuse.rs"]
mod fuse;
#[path = "../suite/guards.rs"]
mod guards;
#[path = "../suite/kernel.rs"]
mod kernel;
#[path = "../suite/mapping.rs"]
mod mapping;
#[path = "../suite/mount.rs"]
#[allow(dead_code, reason = "the suite uses all of it")]
mod mount;
#[path = "../suite/outsiders.rs"]
mod outsiders;
#[path = "../suite/parts.rs"]
mod parts;
#[path = "../suite/pins.rs"]
mod pins;
#[path = "../suite/proofs.rs"]
mod proofs;
#[path = "../suite/rfc.rs"]
mod rfc;
#[path = "../suite/slow.rs"]
mod slow;
#[path = "../suite/stranger.rs"]
mod stranger;
#[path = "../suite/strangers.rs"]
mod strangers;
#[path = "../suite/stress.rs"]
mod stress;
#[path = "../suite/views.rs"]
mod views;
#[path = "../suite/ways.rs"]
mod ways;
