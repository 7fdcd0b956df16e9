//! The placement protocol of pageferry as a pure state machine.
//!
//! # The one idea
//!
//! The engine decides, others act. Somebody submits a [`Request`]; any number of threads
//! [`poll`](Engine::poll) it; each poll looks at the state *as it is now* and answers with the next
//! [`Action`] that brings the request nearer to its end, or that it has to wait, or that it is done.
//! Actions (copies, system calls, device calls) are performed outside the engine and
//! [`complete`](Engine::complete)d. Nothing is remembered of the way so far but what the state says:
//! a request that finds its pages written back by somebody else simply has nothing left to do.
//! So the same code runs under a mutex with real threads, and under a seeded scheduler with every
//! action failing on purpose.
//!
//! # The states of a page
//!
//! ```text
//!                  Fetch / Zero                     store under a write pin
//!       ┌──────┐ ────────────────▶ ┌──────┐ ──────────────────────────▶ ┌──────┐
//!       │ home │                   │ copy │                             │ away │
//!       └──────┘ ◀──────────────── └──────┘ ◀────────────────────────── └──────┘
//!            evicted, or the file            WriteBack (release, flush, age,
//!            changed: copies are dropped     touch, change of the file, eviction)
//! ```
//!
//! *valid* = copy or away; *dirty* = away. A page can be dirty in some bytes and valid in none (its
//! other bytes changed in the file): then its dirty bytes go home before it is fetched again.
//!
//! # The way of a request
//!
//! ```text
//! Pin      Observe → Tidy → Admit → Trap → Clean (write) or Scan (read) → Fill → End
//! Release  TakeDirty → [Clean] → Settle → Free → End
//! Change   Admit → Clean → Perform → Settle → Free → End
//! Resize   Perform → Tidy → Settle → Free → End
//! Flush    Clean → Settle → End          Touch   Admit → Clean → Settle → End
//! Evict    Clean → Settle → Free → End   Query   Observe → TakeDirty → End
//! MapIn    Perform → End                 MapOut  Scan → Perform → End
//! Expel    Perform → End
//! ```
//! A request that is refused on its way goes through `Settle → Free` first: nothing of it remains.
//!
//! # Invariants
//!
//! - **I1** A valid or dirty page has a frame and lies inside the file; dirty bytes too.
//! - **I2** A frame serves one folio; frames in use never exceed the budget.
//! - **I3** Every action owns its pages (a *page lock*) until it is completed; locks never overlap.
//! - **I4** A write pin shares no byte with another pin, but for what was cut off a reading one.
//! - **I5** A dirty page, and every page that a granted write pin holds, is trapped in every mapping.
//! - **I6** Every pin belongs to one file.
//! - **I7** Every page that a granted pin holds has a frame (`file.rs`: what a truncation leaves of it).
//! - **I8** Every pin is found where its range is (`pins.rs`).
#![forbid(unsafe_code)]

mod advance;
mod ask;
mod bitmap;
mod check;
mod complete;
mod engine;
mod file;
mod finish;
mod op;
mod pages;
mod pins;
mod place;
mod queue;
pub mod range;
mod spans;
mod stats;
mod steps;
mod trust;
mod types;
mod wait;

pub use engine::{Config, Engine};
pub use stats::Stats;
pub use types::{
    Action, ActionKey, Class, FileKey, FrameId, MapKey, Mode, Observed, OpKey, Outcome, Owner,
    PAGE_BYTES, PageState, PinKey, Placement, Refusal, Reply, Request, Step, WaitFor,
};
