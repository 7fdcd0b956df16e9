//! `load` and `drop`: what is on a daemon's device.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use pageferry::{Cache, Coherence, Error, File, PinMode, Wait};
use serde_json::json;

use crate::args::FilesArgs;
use crate::output::{complain, line};
use crate::setup::trust;
use crate::size::human;
use crate::stat::resident_bytes;

/// Frames that are brought in at a time: enough for all copying threads, few enough to see progress, and to fit
/// beside what others hold.
const FRAMES: u64 = 16;
/// How long pins of others are waited for, that hold the file or all of the device.
const PATIENCE: Duration = Duration::from_secs(2);

/// A file that is being loaded.
struct Loading<'a> {
    path: &'a Path,
    file: File,
    bytes: u64,
}

pub(crate) fn load(args: &FilesArgs) -> anyhow::Result<bool> {
    let cache = Cache::connect(&args.connect)?;
    let files: Vec<Loading<'_>> =
        args.files.iter().map(|path| open(&cache, path)).collect::<anyhow::Result<_>>()?;
    let bytes: u64 = files.iter().map(|f| f.bytes).sum();
    let started = Instant::now();
    let bar = progress(bytes);
    let mut in_the_way = None;
    for loading in &files {
        in_the_way = loading
            .bring_in(&cache, &bar)
            .with_context(|| format!("loading {}", loading.path.display()))?;
        if in_the_way.is_some() {
            break;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();

    let (mut resident, mut told) = (0, Vec::new());
    for Loading { path, file, bytes } in &files {
        let there = resident_bytes(file)?;
        let coherence = file.coherence()?;
        let (reuse, because) = trust(&coherence);
        if matches!(coherence, Coherence::Unproven(_)) && !args.json {
            complain(&format!("{}: {because}", path.display()));
        }
        resident += there;
        told.push(json!({
            "file": path.display().to_string(), "bytes": bytes, "resident_bytes": there,
            "reuse": reuse, "reuse_detail": because,
        }));
    }
    let all = resident >= bytes;
    if args.json {
        line(
            json!({
                "ok": all, "bytes": bytes, "resident_bytes": resident, "seconds": seconds,
                "memory_bytes": cache.memory_bytes(), "files": told,
            })
            .to_string(),
        )?;
        return Ok(all);
    }
    line(format!(
        "{resident} of {bytes} bytes ({} of {}) are on the device",
        human(resident),
        human(bytes)
    ))?;
    if !all {
        let why = match in_the_way {
            Some(error) => format!("; others hold it, or what it needs: {error}"),
            None => String::new(),
        };
        complain(&format!(
            "not all of it is on the device, which has {} for all files of all clients{why}",
            human(cache.memory_bytes())
        ));
    }
    Ok(all)
}

impl Loading<'_> {
    /// Brings the file in, piece by piece, until pins of others are in the way: which is the error given back.
    fn bring_in(&self, cache: &Cache, bar: &ProgressBar) -> Result<Option<Error>, Error> {
        let frame = cache.frame_bytes();
        let mut step = (cache.memory_bytes() / 4 / frame).clamp(1, FRAMES) * frame;
        let mut at = 0;
        while at < self.bytes {
            let end = (at + step).min(self.bytes);
            let pin = self.file.pin_wait(at..end, PinMode::Read, Wait::Timeout(PATIENCE));
            match pin.and_then(|pin| pin.release()) {
                Ok(_) => {
                    bar.inc(end - at);
                    at = end;
                }
                // Others hold so much, or a session may hold so little: less may do.
                Err(Error::DeviceFull { .. } | Error::TimedOut { .. } | Error::Limit { .. })
                    if step > frame =>
                {
                    step = frame
                }
                Err(error @ (Error::DeviceFull { .. } | Error::TimedOut { .. })) => {
                    return Ok(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

fn open<'a>(cache: &Cache, path: &'a Path) -> anyhow::Result<Loading<'a>> {
    let file = cache.open_read_only(path)?;
    let bytes = file.len()?;
    Ok(Loading { path, file, bytes })
}

/// A progress bar on standard error, if that is a terminal.
fn progress(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template(
        "{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    ) {
        bar.set_style(style);
    }
    bar
}

pub(crate) fn drop_files(args: &FilesArgs) -> anyhow::Result<bool> {
    let cache = Cache::connect(&args.connect)?;
    let (mut dropped, mut left, mut told) = (0, 0, Vec::new());
    for path in &args.files {
        let name = path.display();
        let file = cache.open_read_only(path)?;
        let bytes = file.evict(0..u64::MAX).with_context(|| format!("dropping {name}"))?;
        let stays = resident_bytes(&file)?;
        if !args.json {
            let pinned = if stays > 0 { format!("; {stays} stay, being used") } else { "".into() };
            line(format!("{name}: dropped {bytes} bytes{pinned}"))?;
        }
        (dropped, left) = (dropped + bytes, left + stays);
        told.push(json!({
            "file": name.to_string(), "dropped_bytes": bytes, "resident_bytes": stays,
        }));
    }
    if args.json {
        line(
            json!({
                "ok": true, "dropped_bytes": dropped, "resident_bytes": left, "files": told,
            })
            .to_string(),
        )?;
    }
    Ok(true)
}
