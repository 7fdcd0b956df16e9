//! `stat` and `where`.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use pageferry::Error;
use pageferry_linux::{HostFile, OpenError};
use serde_json::json;

use crate::args::{FileArgs, WhereArgs};
use crate::io::placement_json;
use crate::output::line;
use crate::setup::{cache, trust};
use crate::size::human;

/// The usual frame.
const FRAME: u64 = 2 << 20;

pub(crate) fn stat(args: &FileArgs) -> anyhow::Result<bool> {
    let name = args.file.display();
    let meta = {
        let file = open(&args.file, false)?;
        let own = file.as_fd().try_clone_to_owned().map(std::fs::File::from);
        own.and_then(|f| f.metadata()).with_context(|| format!("looking at {name}"))?
    };
    let obstacle = obstacle(&args.file)?;
    let (reuse, because) = reuse(&args.file, obstacle.is_none());
    let (bytes, stored) = (meta.len(), meta.blocks() * 512);
    let (pages, frames) = (bytes.div_ceil(4096), bytes.div_ceil(FRAME));
    if args.json {
        line(
            json!({
                "ok": true, "file": name.to_string(), "bytes": bytes, "stored_bytes": stored,
                "sparse": stored < bytes, "links": meta.nlink(), "writable": obstacle.is_none(),
                "pages": pages, "frame_bytes": FRAME, "frames": frames,
                "reuse": reuse, "reuse_detail": because,
            })
            .to_string(),
        )?;
        return Ok(true);
    }
    line(format!(
        "{name}: {} ({bytes} bytes), {} stored{}",
        human(bytes),
        human(stored),
        if stored < bytes { " (sparse or compressed: holes stay holes)" } else { "" }
    ))?;
    line(format!("  {pages} pages of 4 KiB; all of it takes {frames} frames of {}", human(FRAME)))?;
    line(match obstacle {
        None => "  can be written: write pins, writable mappings and keeping away work".into(),
        Some(why) => format!(
            "  cannot be written by us ({}): read pins and read-only mappings work",
            std::io::Error::from_raw_os_error(why)
        ),
    })?;
    line(format!("  copies on the device: {reuse}; {because}"))?;
    Ok(true)
}

/// Whether copies of the file would serve more than one pin, and why.
fn reuse(path: &Path, writable: bool) -> (&'static str, String) {
    let looked = cache(64 << 10, 64 << 10, None).and_then(|(cache, _)| {
        let file = if writable { cache.open(path) } else { cache.open_read_only(path) };
        Ok(file?.coherence()?)
    });
    match looked {
        Ok(coherence) => trust(&coherence),
        Err(error) => ("unknown", format!("it could not be looked at: {error:#}")),
    }
}

/// What keeps us from writing the file, if something about the file does.
fn obstacle(path: &Path) -> anyhow::Result<Option<i32>> {
    match open(path, true) {
        Ok(_) => Ok(None),
        Err(Error::Os {
            errno: errno @ (libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY),
            ..
        }) => Ok(Some(errno)),
        Err(error) => Err(error.into()),
    }
}

/// Opens a file as the cache would, with its errors; there is nothing here that needs a device.
fn open(path: &Path, writable: bool) -> Result<HostFile, Error> {
    let name = path.display().to_string();
    HostFile::open(path, writable).map_err(|error| match error {
        OpenError::NotRegular { kind } => Error::NotRegularFile { name, what: kind.to_string() },
        OpenError::Os { source, .. } => Error::Os {
            what: format!("opening {name}"),
            errno: source.raw_os_error().unwrap_or(libc::EIO),
        },
        error => Error::InvalidArgument(format!("{name}: {error}")),
    })
}

pub(crate) fn placement(args: &WhereArgs) -> anyhow::Result<bool> {
    // The least device there is: nothing will ever be on it.
    let (cache, _) = cache(64 << 10, 64 << 10, None)?;
    let file = cache.open_read_only(&args.file)?;
    let end = args.off.checked_add(args.len).context("the range wraps")?;
    let placed = file.placement(args.off..end)?;
    if args.json {
        line(json!({ "ok": true, "ranges": placement_json(&placed) }).to_string())?;
        return Ok(true);
    }
    for p in placed {
        line(format!("{}..{} {}", p.range.start, p.range.end, crate::io::state_name(p.state)))?;
    }
    line(
        "(this process has just begun: nothing can be on its device yet; `pageferry io` shows more)",
    )?;
    Ok(true)
}
