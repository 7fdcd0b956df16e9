//! Windows through the device, three at a time.
//!
//! One thread pins the next window (which brings it in), one runs the kernel over the present one,
//! one releases the last (which writes it back). A window is what travels: its pins, detached, go
//! from stage to stage through channels of one place. The device's budget is the only brake that is
//! needed: the pinning stage waits for a frame until the releasing stage has given one back.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use pageferry::{Cache, DetachedPin, File, Result};

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
    let frame = cache.frame_bytes();
    let width = files.len() as u64;
    if cache.memory_bytes() < width * frame {
        bail!("{width} files at once need {width} frames: raise --device-memory or lower --frame");
    }
    let most = (cache.memory_bytes() / width / frame * frame).max(frame);
    let usual = cache.memory_bytes() / (6 * width) / frame * frame;
    let asked = if window == 0 { usual } else { window.next_multiple_of(frame) };
    let step = asked.clamp(frame, most);
    let bar = progress(bytes);
    let (to_compute, filled) = sync_channel(1);
    let (to_release, computed) = sync_channel(1);
    std::thread::scope(|scope| {
        let pinning = scope.spawn(move || pin(files, kernel, bytes, step, &to_compute));
        let computing = scope.spawn(move || compute(cache, kernel, &filled, &to_release));
        let releasing = release(&computed, &bar);
        let stages = [joined(pinning), joined(computing), releasing];
        // The stage that failed first is the cause; the others only noticed that it was gone.
        stages.into_iter().collect::<Result<Vec<()>>>()
    })?;
    Ok(bytes * width)
}

fn joined(stage: std::thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    let lost =
        |_| Err(pageferry::Error::KernelFailed("a stage of the pipeline ended early".into()));
    stage.join().unwrap_or_else(lost)
}

fn pin(
    files: &[File],
    kernel: &Kernel,
    bytes: u64,
    step: u64,
    out: &SyncSender<Window>,
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
    windows: &Receiver<Window>,
    out: &SyncSender<Window>,
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

fn release(windows: &Receiver<Window>, bar: &ProgressBar) -> Result<()> {
    for Window { range, pins } in windows {
        for pin in pins {
            pin.attach().release()?;
        }
        bar.inc(range.end - range.start);
    }
    bar.finish_and_clear();
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
