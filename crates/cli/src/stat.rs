//! `stat` and `where`.

use std::os::unix::fs::MetadataExt;

use anyhow::Context;
use serde_json::json;

use crate::args::{FileArgs, WhereArgs};
use crate::io::placement_json;
use crate::output::line;
use crate::setup::{FLUSH_AGE, cache};
use crate::size::human;

pub(crate) fn stat(args: &FileArgs) -> anyhow::Result<bool> {
    let (cache, _) = cache(64 << 20, 2 << 20, FLUSH_AGE)?;
    let file = cache.open_read_only(&args.file)?;
    let writable = cache.open(&args.file).is_ok();
    let meta = std::fs::metadata(&args.file).context("reading the file's attributes")?;
    let (bytes, frame) = (file.len()?, cache.frame_bytes());
    let stored = meta.blocks() * 512;
    let (pages, frames) = (bytes.div_ceil(4096), bytes.div_ceil(frame));
    if args.json {
        line(
            json!({
                "file": args.file.display().to_string(), "bytes": bytes, "stored_bytes": stored,
                "sparse": stored < bytes, "links": meta.nlink(), "writable": writable,
                "pages": pages, "frame_bytes": frame, "frames": frames,
            })
            .to_string(),
        )?;
        return Ok(true);
    }
    line(format!(
        "{}: {} ({bytes} bytes), {} stored{}",
        args.file.display(),
        human(bytes),
        human(stored),
        if stored < bytes { " (sparse or compressed: holes stay holes)" } else { "" }
    ))?;
    line(format!("  {pages} pages of 4 KiB; all of it takes {frames} frames of {}", human(frame)))?;
    line(if writable {
        "  can be written: write pins, writable mappings and keeping away work"
    } else {
        "  cannot be written by us: read pins and read-only mappings work"
    })?;
    Ok(true)
}

pub(crate) fn placement(args: &WhereArgs) -> anyhow::Result<bool> {
    let (cache, _) = cache(64 << 20, 2 << 20, FLUSH_AGE)?;
    let file = cache.open_read_only(&args.file)?;
    let end = args.off.checked_add(args.len).context("the range wraps")?;
    let placed = file.placement(args.off..end)?;
    if args.json {
        line(json!({ "ranges": placement_json(&placed) }).to_string())?;
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
