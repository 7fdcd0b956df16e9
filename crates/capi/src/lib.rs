//! The C interface of pageferry: `include/pageferry.h`, which is made from the comments here.
//!
//! # The one idea
//!
//! A handle that C holds is no address but a number (`handles`). So whatever a program passes, closed, of
//! another kind or made up, is found out and refused; and a handle that one thread closes while another is
//! in a call with it stays until that call ends. What is left to trust are the pointers to strings, buffers and
//! results (`border`).
//!
//! Every function here is a call across the `border`: what fails becomes a number and a text, a panic too.
#![allow(non_camel_case_types, reason = "names are C's")]
#![allow(
    clippy::missing_safety_doc,
    reason = "comments are C's; the top of the header has the rules"
)]

mod border;
mod cache;
mod file;
mod handles;
mod map;
mod pin;

pub use cache::*;
pub use file::*;
pub use map::*;
pub use pin::*;

pub use border::{pf_error_kind, pf_error_text};
