//! `demo`: the device and an unmodified program take turns over one file.

mod report;
mod rival;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use pageferry::{Cache, File, PinMode};
use sha2::{Digest, Sha256};

use crate::args::DemoArgs;
use crate::output::{hex, line};
use crate::scratch::{Scratch, ensure_room, reserved};
use crate::setup::{self, FLUSH_AGE};
use crate::size::human;
use report::report;
use rival::Rival;

/// Bytes of one stretch that the device changes.
const PATCH: u64 = 64 << 10;

/// One turn.
struct Phase {
    moved: u64,
    device: Duration,
    program: Duration,
    rival_moved: u64,
    rival: Duration,
    agree: bool,
}

pub(crate) fn demo(args: &DemoArgs) -> anyhow::Result<bool> {
    let subject = prepare(args)?;
    let path = subject.path();
    let mut model = fs::read(path).context("reading the file")?;
    let bytes = model.len() as u64;
    let frame = 2 << 20;
    let memory = (bytes.div_ceil(frame) + 1) * frame;
    let (cache, _) = setup::cache(memory, frame, FLUSH_AGE)?;
    let file = cache.open(path)?;
    if !args.json {
        line(format!(
            "One file of {}. The device changes 1 % of it, then sha256sum, which knows nothing",
            human(bytes)
        ))?;
        line(
            "of us, reads all of it; and again. Beside it, in the same run: a program that copies the",
        )?;
        line("file to the device before each turn and back after it.")?;
    }
    let mut rival = Rival::new(&mut fs::File::open(path)?, bytes)?;
    let bar = progress(args.phases);
    let loaded = load(&cache, &file, bytes)?;
    bar.inc(1);
    let mut phases = Vec::new();
    for turn in 1..=args.phases {
        let phase = phase(&cache, &file, path, &mut model, &mut rival, turn)?;
        bar.inc(1);
        phases.push(phase);
    }
    bar.finish_and_clear();
    let agree = phases.iter().filter(|p| p.agree).count();
    report(args, bytes, &loaded, &phases)?;
    file.close()?;
    Ok(agree == phases.len())
}

/// The load and the turns.
fn progress(phases: u32) -> ProgressBar {
    let bar = ProgressBar::new(u64::from(phases) + 1);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos} of {len} phases") {
        bar.set_style(style);
    }
    bar
}

/// The file that the demo works on.
enum Subject {
    Theirs(PathBuf),
    Ours(Scratch),
}

impl Subject {
    fn path(&self) -> &Path {
        match self {
            Subject::Theirs(path) => path,
            Subject::Ours(scratch) => scratch.path(),
        }
    }
}

fn prepare(args: &DemoArgs) -> anyhow::Result<Subject> {
    let bytes = match &args.file {
        None => args.size,
        Some(file) => {
            let meta = fs::metadata(file).with_context(|| format!("opening {}", file.display()))?;
            ensure!(meta.is_file(), "{} is not a regular file", file.display());
            meta.len()
        }
    };
    ensure!(bytes > 0, "the file is empty; there is nothing to show on it");
    // In memory: the device's, the rival's, and the model that both are checked against.
    let copies = if args.in_place { 1 } else { 2 };
    ensure_room(copies * u128::from(bytes), 3 * u128::from(bytes))?;
    let Some(file) = &args.file else { return Ok(Subject::Ours(made(bytes)?)) };
    if args.in_place {
        return Ok(Subject::Theirs(file.clone()));
    }
    let copy = Scratch::new(|copy| {
        fs::File::open(file)
            .and_then(|mut original| std::io::copy(&mut original, copy))
            .with_context(|| format!("copying {}", file.display()))?;
        Ok(())
    })?;
    Ok(Subject::Ours(copy))
}

/// A new file; no two of its pages are equal.
fn made(bytes: u64) -> anyhow::Result<Scratch> {
    const PIECE: u64 = 1 << 20;
    let mut piece = reserved(PIECE)?;
    // xorshift: quick.
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut left = bytes;
    Scratch::new(|file| {
        while left > 0 {
            piece.clear();
            for _ in 0..PIECE / 8 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                piece.extend_from_slice(&state.to_le_bytes());
            }
            piece.truncate(left.min(PIECE) as usize);
            file.write_all(&piece).context("writing the file")?;
            left -= piece.len() as u64;
        }
        Ok(())
    })
}

/// What the first load moved and took.
fn load(cache: &Cache, file: &File, bytes: u64) -> anyhow::Result<(u64, Duration)> {
    let (before, started) = (moved(cache), Instant::now());
    file.pin(0..bytes, PinMode::Read)?.release()?;
    Ok((moved(cache) - before, started.elapsed()))
}

fn moved(cache: &Cache) -> u64 {
    let stats = cache.stats();
    stats.get("fetched_bytes").unwrap_or(0) + stats.get("written_back_bytes").unwrap_or(0)
}

/// The stretches that turn changes: 1 % of the file, spread over it.
fn patches(bytes: u64, turn: u32) -> Vec<std::ops::Range<u64>> {
    let count = (bytes / 100 / PATCH).max(1);
    let stride = (bytes / count).max(4);
    let shift = u64::from(turn) * 7919 * 4096;
    let patch = |n: u64| {
        let start = (n * stride + shift) % bytes / 4 * 4;
        start
            ..(start + PATCH)
                .min((n * stride + shift) % bytes / stride * stride + stride)
                .min(bytes)
    };
    let mut all: Vec<_> = (0..count).map(patch).filter(|r| r.start < r.end).collect();
    all.sort_by_key(|r| r.start);
    all.dedup_by(|b, a| b.start < a.end);
    all
}

fn add(piece: &mut [u8], turn: u32) {
    for element in piece.as_chunks_mut::<4>().0 {
        *element = u32::from_le_bytes(*element).wrapping_add(turn).to_le_bytes();
    }
}

fn sum(piece: &[u8]) -> u64 {
    piece.as_chunks::<4>().0.iter().map(|e| u64::from(u32::from_le_bytes(*e))).sum()
}

fn phase(
    cache: &Cache,
    file: &File,
    path: &Path,
    model: &mut [u8],
    rival: &mut Rival,
    turn: u32,
) -> anyhow::Result<Phase> {
    let bytes = model.len() as u64;
    let patches = patches(bytes, turn);
    // The device reads everything, and changes 1 %.
    let (before, started) = (moved(cache), Instant::now());
    let whole = file.pin(0..bytes, PinMode::Read)?;
    let seen = device_sum(cache, &whole, bytes)?;
    whole.release()?;
    for patch in &patches {
        let pin = file.pin(patch.clone(), PinMode::Write)?;
        let view = pin.view()?;
        cache.launch(1, |_| view.update(patch.clone(), &mut |piece| add(piece, turn)))?;
        drop(view);
        pin.release()?;
    }
    let (device, moved) = (started.elapsed(), moved(cache) - before);
    // The same by hand, and by the rival.
    let expected: u64 = sum(model);
    for patch in &patches {
        add(&mut model[patch.start as usize..patch.end as usize], turn);
    }
    let (rival_seen, rival_time) = rival.turn(&patches, turn)?;
    let started = Instant::now();
    let digest = sha256sum(path)?;
    let program = started.elapsed();
    let truth = hex(&Sha256::digest(&*model));
    let agree = digest == truth && seen == expected && rival_seen == expected;
    Ok(Phase { moved, device, program, rival_moved: 2 * bytes, rival: rival_time, agree })
}

fn device_sum(cache: &Cache, pin: &pageferry::Pin, bytes: u64) -> anyhow::Result<u64> {
    const GROUP: u64 = 4 << 20;
    let view = pin.view()?;
    let total = std::sync::atomic::AtomicU64::new(0);
    cache.launch(bytes.div_ceil(GROUP), |group| {
        let range = group * GROUP..((group + 1) * GROUP).min(bytes);
        view.visit(range, &mut |piece| {
            total.fetch_add(sum(piece), std::sync::atomic::Ordering::Relaxed);
        })
    })?;
    Ok(total.into_inner())
}

fn sha256sum(path: &Path) -> anyhow::Result<String> {
    // By standard input: a file without a name has none that another program could open.
    let input = fs::File::open(path).context("opening the file for sha256sum")?;
    let output = Command::new("sha256sum").stdin(input).output();
    let output = output.context("running sha256sum (it is part of coreutils)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("sha256sum ended with {}; it said '{}'", output.status, said.trim_end());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}
