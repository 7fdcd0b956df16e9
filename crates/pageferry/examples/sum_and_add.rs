//! Sums a file on the device, adds one to each of its little-endian `u32`s there, and reads the
//! result like any other program would.
//!
//! `cargo run -p pageferry --example sum_and_add [FILE]` works on a copy of FILE.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{Cache, CacheConfig, PinMode};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("numbers");
    match std::env::args_os().nth(1) {
        Some(file) => drop(std::fs::copy(file, &path)?),
        None => std::fs::write(&path, vec![1u8; 1 << 20])?,
    }
    let cache =
        Cache::new(Arc::new(SoftDevice::new(SoftConfig::default())?), CacheConfig::default())?;
    let file = cache.open(&path)?;
    let bytes = file.len()? / 4 * 4;

    let pin = file.pin(0..bytes, PinMode::Write)?;
    let view = pin.view()?;
    let sum = AtomicU64::new(0);
    const GROUP: u64 = 64 << 10;
    cache.launch(bytes.div_ceil(GROUP), |group| {
        let range = group * GROUP..((group + 1) * GROUP).min(bytes);
        view.update(range, &mut |piece| {
            for element in piece.as_chunks_mut::<4>().0 {
                let value = u32::from_le_bytes(*element);
                sum.fetch_add(value.into(), Ordering::Relaxed);
                *element = value.wrapping_add(1).to_le_bytes();
            }
        })
    })?;
    drop(view);
    let written = pin.release()?;
    println!("the sum was {}; {written} bytes went home", sum.into_inner());
    println!("the first bytes are now {:?}", &std::fs::read(&path)?[..8.min(bytes as usize)]);
    Ok(())
}
