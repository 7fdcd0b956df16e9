//! What the demo is compared with.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread::Builder;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{add, sum};
use crate::scratch::memory;

/// A program that has the file on the device only while it works.
pub(super) struct Rival {
    copy: File,
    memory: Vec<u8>,
}

impl Rival {
    pub(super) fn new(original: &mut File, bytes: u64) -> anyhow::Result<Rival> {
        let mut copy = tempfile::tempfile().context("making a file for the rival")?;
        std::io::copy(original, &mut copy).context("copying the file for the rival")?;
        // Touched beforehand: the rival shall not pay for that.
        Ok(Rival { copy, memory: memory(bytes, 1)? })
    }

    pub(super) fn turn(
        &mut self,
        patches: &[Range<u64>],
        turn: u32,
    ) -> anyhow::Result<(u64, Duration)> {
        let started = Instant::now();
        self.copy.read_exact_at(&mut self.memory, 0)?;
        let half = self.memory.len() / 8 * 4;
        let (low, high) = self.memory.split_at(half);
        // As many threads as the device has in the common case, so that only the copies differ.
        let seen = std::thread::scope(|scope| -> anyhow::Result<u64> {
            let other = Builder::new().spawn_scoped(scope, || sum(high));
            let other = other.context("starting a thread for the rival")?;
            Ok(sum(low).wrapping_add(other.join().unwrap_or(0)))
        })?;
        for patch in patches {
            add(&mut self.memory[patch.start as usize..patch.end as usize], turn);
        }
        self.copy.write_all_at(&self.memory, 0)?;
        Ok((seen, started.elapsed()))
    }
}
