//! `demo`: the device and an unmodified program take turns over one file.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use pageferry::{Cache, File, PinMode};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::args::DemoArgs;
use crate::output::{hex, line};
use crate::setup::{self, FLUSH_AGE};
use crate::size::human;

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
    let dir = tempfile::tempdir().context("making a scratch directory")?;
    let path = prepare(args, dir.path())?;
    let mut model = fs::read(&path).context("reading the file")?;
    let bytes = model.len() as u64;
    ensure!(bytes > 0, "the file is empty; there is nothing to show on it");
    let frame = 2 << 20;
    let memory = (bytes.div_ceil(frame) + 1) * frame;
    let (cache, _) = setup::cache(memory, frame, FLUSH_AGE)?;
    let file = cache.open(&path)?;
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
    let rival_path = dir.path().join("rival");
    fs::copy(&path, &rival_path).context("copying the file for the rival")?;
    let mut rival = Rival::new(&rival_path, bytes)?;
    let bar = crate::run::progress(u64::from(args.phases) + 1);
    let loaded = load(&cache, &file, bytes)?;
    bar.inc(1);
    let mut phases = Vec::new();
    for turn in 1..=args.phases {
        let phase = phase(&cache, &file, &path, &mut model, &mut rival, turn)?;
        bar.inc(1);
        phases.push(phase);
    }
    bar.finish_and_clear();
    let agree = phases.iter().filter(|p| p.agree).count();
    report(args, bytes, &loaded, &phases)?;
    file.close()?;
    Ok(agree == phases.len())
}

fn prepare(args: &DemoArgs, dir: &Path) -> anyhow::Result<PathBuf> {
    let made = dir.join("data");
    match &args.file {
        Some(file) if args.in_place => Ok(file.clone()),
        Some(file) => {
            ensure!(file.is_file(), "{} is not a regular file", file.display());
            fs::copy(file, &made).with_context(|| format!("copying {}", file.display()))?;
            Ok(made)
        }
        None => {
            // xorshift: quick, and no two pages are equal.
            let mut state = 0x9E37_79B9_7F4A_7C15u64;
            let words = args.size.div_ceil(8);
            let mut data = Vec::with_capacity(words as usize * 8);
            for _ in 0..words {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                data.extend_from_slice(&state.to_le_bytes());
            }
            data.truncate(args.size as usize);
            fs::write(&made, data).context("writing the file")?;
            Ok(made)
        }
    }
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

/// A program that has the file on the device only while it works.
struct Rival {
    file: fs::File,
    memory: Vec<u8>,
}

impl Rival {
    fn new(path: &Path, bytes: u64) -> anyhow::Result<Rival> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        // Touched beforehand: the rival shall not pay for that.
        Ok(Rival { file, memory: vec![1; bytes as usize] })
    }

    fn turn(
        &mut self,
        patches: &[std::ops::Range<u64>],
        turn: u32,
    ) -> anyhow::Result<(u64, Duration)> {
        let started = Instant::now();
        self.file.read_exact_at(&mut self.memory, 0)?;
        let half = self.memory.len() / 8 * 4;
        let (low, high) = self.memory.split_at(half);
        // As many threads as the device has in the common case, so that only the copies differ.
        let seen = std::thread::scope(|scope| {
            let other = scope.spawn(|| sum(high));
            sum(low).wrapping_add(other.join().unwrap_or(0))
        });
        for patch in patches {
            add(&mut self.memory[patch.start as usize..patch.end as usize], turn);
        }
        self.file.write_all_at(&self.memory, 0)?;
        Ok((seen, started.elapsed()))
    }
}

fn sha256sum(path: &Path) -> anyhow::Result<String> {
    let output = Command::new("sha256sum").arg(path).output();
    let output = output.context("running sha256sum (it is part of coreutils)")?;
    if !output.status.success() {
        bail!("sha256sum failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // A name with odd characters makes it begin with a backslash.
    Ok(text.trim_start_matches('\\').split_whitespace().next().unwrap_or_default().to_owned())
}

fn report(
    args: &DemoArgs,
    bytes: u64,
    load: &(u64, Duration),
    phases: &[Phase],
) -> anyhow::Result<()> {
    let agree = phases.iter().filter(|p| p.agree).count();
    let ours: u64 = phases.iter().map(|p| p.moved).sum();
    let theirs: u64 = phases.iter().map(|p| p.rival_moved).sum();
    let (our_time, their_time) = (
        phases.iter().map(|p| p.device).sum::<Duration>().as_secs_f64(),
        phases.iter().map(|p| p.rival).sum::<Duration>().as_secs_f64(),
    );
    let fewer = theirs as f64 / ours.max(1) as f64;
    if args.json {
        let rows: Vec<_> = phases
            .iter()
            .map(|p| {
                json!({
                    "moved_bytes": p.moved, "device_s": p.device.as_secs_f64(),
                    "program_s": p.program.as_secs_f64(), "recopy_bytes": p.rival_moved,
                    "recopy_s": p.rival.as_secs_f64(), "agree": p.agree,
                })
            })
            .collect();
        line(
            json!({
                "ok": agree == phases.len(), "file_bytes": bytes, "loaded_bytes": load.0,
                "load_s": load.1.as_secs_f64(), "phases": rows, "digests_agree": agree,
                "moved_bytes": ours, "recopy_bytes": theirs, "times_fewer_bytes": fewer,
                "times_less_time": their_time / our_time,
            })
            .to_string(),
        )?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
        "turn",
        "bytes moved",
        "device works",
        "sha256sum",
        "re-copying moves",
        "re-copying takes",
        "digest",
    ]);
    let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1e3);
    table.add_row([
        "load".into(),
        human(load.0),
        ms(load.1),
        "".into(),
        "".into(),
        "".into(),
        "".into(),
    ]);
    for (n, p) in phases.iter().enumerate() {
        let verdict = if p.agree { "agrees" } else { "DISAGREES" };
        table.add_row([
            (n + 1).to_string(),
            human(p.moved),
            ms(p.device),
            ms(p.program),
            human(p.rival_moved),
            ms(p.rival),
            verdict.into(),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    line(table.to_string())?;
    line(format!(
        "digests agree: {agree} of {} (sha256sum's, and an independent computation's)",
        phases.len()
    ))?;
    line(format!(
        "bytes moved: {} instead of {}: {} were not moved ({fewer:.0} times fewer)",
        human(ours),
        human(theirs),
        human(theirs.saturating_sub(ours))
    ))?;
    line(format!(
        "device turns took {:.1} ms instead of {:.1} ms ({:.1} times less)",
        our_time * 1e3,
        their_time * 1e3,
        their_time / our_time
    ))?;
    Ok(())
}
