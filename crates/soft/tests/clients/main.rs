//! Frames of a software device in other processes.
#![cfg(not(loom))]

mod attempts;
mod child;
mod common;
mod pages;
mod resources;
mod reuse;
mod stores;
mod torn;
