//! Windows through the device, three at a time.
//!
//! One thread pins the next window (which brings it in), one runs the kernel over the present one,
//! one releases the last (which writes it back). A window is what travels: its pins, detached, go
//! from stage to stage through channels of one place. The device's budget is the only brake that is
//! needed: the pinning stage waits for a frame until the releasing stage has given one back.
//!
//! Each stage owns its ends of the channels, so one that ends early, for whatever reason, ends its
//! neighbours: what they send or wait for has no other side any more.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use pageferry::{Cache, DetachedPin, File, Result};
use parking_lot::Mutex;

use super::kernels::Kernel;

/// One window of every file.
struct Window {
    range: Range<u64>,
    pins: Vec<DetachedPin>,
}

/// Runs the kernel over the files side by side; returns the bytes worked on.
pub(super) fn run(
    cache: &Cache,
    files: &[File],
    kernel: &Kernel,
    window: u64,
) -> anyhow::Result<u64> {
    let lens: Vec<u64> = files.iter().map(File::len).collect::<Result<_>>()?;
    let bytes = lens.first().copied().unwrap_or(0);
    if lens.iter().any(|l| *l != bytes) {
        bail!("the files have different sizes: {lens:?} bytes");
    }
    let step = step(cache, files.len() as u64, window)?;
    let bar = progress(bytes);
    let (to_compute, filled) = sync_channel(1);
    let (to_release, computed) = sync_channel(1);
    let failed = Mutex::new(None);
    let note = |result: Result<()>| {
        if let Err(error) = result {
            failed.lock().get_or_insert(error);
        }
    };
    let note = &note;
    std::thread::scope(|scope| -> anyhow::Result<()> {
        spawn(scope, move || note(pin(files, kernel, bytes, step, to_compute)))?;
        spawn(scope, move || note(compute(cache, kernel, filled, to_release)))?;
        note(release(computed, &bar));
        Ok(())
    })?;
    let done = bar.position();
    bar.finish_and_clear();
    match failed.into_inner() {
        Some(error) => Err(error).with_context(|| format!("stopped after {done} of {bytes} bytes")),
        None => Ok(bytes * files.len() as u64),
    }
}

/// Bytes of a window: as asked, in whole frames, as far as all files' windows fit the device.
fn step(cache: &Cache, width: u64, window: u64) -> anyhow::Result<u64> {
    let (memory, frame) = (cache.memory_bytes(), cache.frame_bytes());
    if memory < width * frame {
        bail!(
            "{width} files at once need {width} frames: it takes more device memory, or smaller frames"
        );
    }
    let most = (memory / width / frame * frame).max(frame);
    let usual = memory / (6 * width) / frame * frame;
    let whole = window.checked_next_multiple_of(frame).unwrap_or(most);
    Ok(if window == 0 { usual } else { whole }.clamp(frame, most))
}

/// Starts a stage. One that cannot be started drops its ends of the channels, which ends the others.
fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    stage: impl FnOnce() + Send + 'scope,
) -> anyhow::Result<()> {
    Builder::new().spawn_scoped(scope, stage).context("starting a thread of the pipeline")?;
    Ok(())
}

fn pin(
    files: &[File],
    kernel: &Kernel,
    bytes: u64,
    step: u64,
    out: SyncSender<Window>,
) -> Result<()> {
    let mut at = 0;
    while at < bytes {
        let range = at..(at + step).min(bytes);
        let mut pins = Vec::new();
        for (n, file) in files.iter().enumerate() {
            pins.push(file.pin(range.clone(), kernel.mode(n))?.detach());
        }
        at = range.end;
        if out.send(Window { range, pins }).is_err() {
            break;
        }
    }
    Ok(())
}

fn compute(
    cache: &Cache,
    kernel: &Kernel,
    windows: Receiver<Window>,
    out: SyncSender<Window>,
) -> Result<()> {
    const GROUP_BYTES: u64 = 256 << 10;
    for Window { range, pins } in windows {
        let pins: Vec<_> = pins.into_iter().map(DetachedPin::attach).collect();
        let views: Vec<_> = pins.iter().map(pageferry::Pin::view).collect::<Result<_>>()?;
        cache.launch((range.end - range.start).div_ceil(GROUP_BYTES), |group| {
            let start = range.start + group * GROUP_BYTES;
            kernel.work(&views, start..(start + GROUP_BYTES).min(range.end))
        })?;
        drop(views);
        let pins = pins.into_iter().map(pageferry::Pin::detach).collect();
        if out.send(Window { range, pins }).is_err() {
            break;
        }
    }
    Ok(())
}

fn release(windows: Receiver<Window>, bar: &ProgressBar) -> Result<()> {
    for Window { range, pins } in windows {
        for pin in pins {
            pin.attach().release()?;
        }
        bar.inc(range.end - range.start);
    }
    Ok(())
}

/// A progress bar on standard error, if that is a terminal.
fn progress(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {msg}")
    {
        bar.set_style(style);
    }
    bar
}
