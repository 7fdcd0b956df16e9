//! The promises of SEMANTICS.md on a real kernel, with the software device.

mod changes;
mod common;
mod failures;
mod mapping;
mod pins;
mod stress;
