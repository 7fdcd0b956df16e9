//! A deterministic world around the engine.
//!
//! Virtual threads pin, store, release, touch, change, resize, evict and flush; a seeded scheduler
//! decides who moves next; actions begin and end at different moments and may fail on purpose, for a
//! moment or for good, and the device may be lost; pins change hands, and others change files; after
//! every step the engine's invariants are checked, and everything anybody sees is held against a
//! plain model. `WORLD_SEEDS=100000` for a long run, `WORLD_SEED=n` replays one.

#[path = "world/actors.rs"]
mod actors;
#[path = "world/kernels.rs"]
mod kernels;
#[path = "world/model.rs"]
mod model;
#[path = "world/performer.rs"]
mod performer;
#[path = "world/twins.rs"]
mod twins;
#[path = "world/wishes.rs"]
mod wishes;

use actors::World;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64) {
    let result = std::panic::catch_unwind(|| World::new(seed).live(600));
    if let Err(panic) = result {
        eprintln!("the world with WORLD_SEED={seed} has ended badly");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn the_world_holds() {
    if let Some(seed) = number("WORLD_SEED") {
        return World::loud(seed).live(600);
    }
    for seed in 0..number("WORLD_SEEDS").unwrap_or(1500) {
        run(seed);
    }
}
