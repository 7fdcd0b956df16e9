//! The built-in kernels. One group works on one stretch of a window.

use anyhow::{Context, bail};
use pageferry::{PinMode, Result, View};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::args::{KernelName, RunArgs};

/// A kernel and what it has found so far.
pub(super) struct Kernel {
    name: KernelName,
    value: u32,
    a: f32,
    found: Mutex<Found>,
}

struct Found {
    sum: u64,
    histogram: [u64; 256],
    bytes: u64,
}

impl Kernel {
    pub(super) fn new(args: &RunArgs) -> anyhow::Result<Kernel> {
        if args.kernel == KernelName::Xor {
            u8::try_from(args.value).ok().with_context(|| {
                format!("xor works on bytes: --value {} is not from 0 to 255", args.value)
            })?;
        }
        if !args.a.is_finite() {
            bail!("--a must be finite");
        }
        let found = Mutex::new(Found { sum: 0, histogram: [0; 256], bytes: 0 });
        Ok(Kernel { name: args.kernel, value: args.value, a: args.a, found })
    }

    /// How the file at a position of the list is pinned.
    pub(super) fn mode(&self, file: usize) -> PinMode {
        match self.name {
            KernelName::Sum | KernelName::Histogram => PinMode::Read,
            KernelName::Add | KernelName::Xor => PinMode::Write,
            KernelName::Saxpy if file == 1 => PinMode::Write,
            KernelName::Saxpy => PinMode::Read,
        }
    }

    /// Works on a stretch, which begins at a multiple of four bytes.
    pub(super) fn work(&self, views: &[View<'_>], range: std::ops::Range<u64>) -> Result<()> {
        let bytes = range.end - range.start;
        let worked_on = match self.name {
            // The file's last bytes may be no whole element: they stay as they are.
            KernelName::Add | KernelName::Saxpy => bytes / 4 * 4,
            _ => bytes,
        };
        match self.name {
            KernelName::Sum => {
                let mut sum = 0u64;
                // Pieces break at multiples of 4096, so only the file's last one can be partial.
                views[0].visit(range, &mut |piece| {
                    let (whole, rest) = piece.as_chunks::<4>();
                    let mut last = [0; 4];
                    last[..rest.len()].copy_from_slice(rest);
                    let part: u64 = whole.iter().map(|e| u64::from(u32::from_le_bytes(*e))).sum();
                    sum = sum.wrapping_add(part).wrapping_add(u32::from_le_bytes(last).into());
                })?;
                let mut found = self.found.lock();
                found.sum = found.sum.wrapping_add(sum);
            }
            KernelName::Histogram => {
                let mut counts = [0u64; 256];
                views[0].visit(range, &mut |piece| {
                    piece.iter().for_each(|b| counts[usize::from(*b)] += 1);
                })?;
                let mut found = self.found.lock();
                found.histogram.iter_mut().zip(counts).for_each(|(f, c)| *f += c);
            }
            KernelName::Add => views[0].update(range, &mut |piece| {
                for e in piece.as_chunks_mut::<4>().0 {
                    *e = u32::from_le_bytes(*e).wrapping_add(self.value).to_le_bytes();
                }
            })?,
            KernelName::Xor => views[0].update(range, &mut |piece| {
                piece.iter_mut().for_each(|b| *b ^= self.value as u8);
            })?,
            KernelName::Saxpy => {
                let mut x = vec![0; bytes as usize];
                views[0].read(range.start, &mut x)?;
                let mut x = x.as_chunks::<4>().0.iter();
                views[1].update(range, &mut |piece| {
                    for (y, x) in piece.as_chunks_mut::<4>().0.iter_mut().zip(&mut x) {
                        let sum = self.a * f32::from_le_bytes(*x) + f32::from_le_bytes(*y);
                        *y = sum.to_le_bytes();
                    }
                })?;
            }
        }
        self.found.lock().bytes += worked_on;
        Ok(())
    }

    /// The answer.
    pub(super) fn result(self) -> Value {
        let found = self.found.into_inner();
        match self.name {
            KernelName::Sum => found.sum.into(),
            KernelName::Histogram => found.histogram.to_vec().into(),
            _ => json!({ "bytes": found.bytes }),
        }
    }
}

/// The answer over several files.
pub(super) fn total<'a>(mut results: impl Iterator<Item = &'a Value>) -> Value {
    let first = results.next().cloned().unwrap_or(Value::Null);
    results.fold(first, |total, next| match (total, next) {
        (Value::Array(a), Value::Array(b)) => a
            .iter()
            .zip(b)
            .map(|(a, b)| a.as_u64().unwrap_or(0) + b.as_u64().unwrap_or(0))
            .collect(),
        (Value::Object(a), Value::Object(b)) => {
            let bytes =
                |o: &serde_json::Map<_, Value>| o.get("bytes").and_then(Value::as_u64).unwrap_or(0);
            json!({ "bytes": bytes(&a) + bytes(b) })
        }
        (a, b) => a.as_u64().unwrap_or(0).wrapping_add(b.as_u64().unwrap_or(0)).into(),
    })
}

/// The answer for people.
pub(super) fn show(result: &Value) -> String {
    match result {
        Value::Array(counts) => {
            let count = |(byte, n): (usize, &Value)| {
                n.as_u64().filter(|n| *n > 0).map(|n| format!("{byte:#04x}:{n}"))
            };
            counts.iter().enumerate().filter_map(count).collect::<Vec<_>>().join(" ")
        }
        Value::Object(o) => format!("changed {} bytes", o.get("bytes").unwrap_or(&Value::Null)),
        other => other.to_string(),
    }
}
