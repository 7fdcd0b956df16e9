//! `stat` and `where`.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use pageferry::{Cache, Coherence, Error, File, PageState};
use pageferry_linux::{HostFile, OpenError};
use serde_json::json;

use crate::args::{FileArgs, WhereArgs};
use crate::io::placement_json;
use crate::output::line;
use crate::setup::{cache, connect_or, trust};
use crate::size::human;

/// The usual frame.
const FRAME: u64 = 2 << 20;
/// The least device there is: nothing will ever be on it.
const LEAST: u64 = 64 << 10;

pub(crate) fn stat(args: &FileArgs) -> anyhow::Result<bool> {
    let name = args.file.display();
    let meta = {
        let file = open(&args.file, false)?;
        let own = file.as_fd().try_clone_to_owned().map(std::fs::File::from);
        own.and_then(|f| f.metadata()).with_context(|| format!("looking at {name}"))?
    };
    let obstacle = obstacle(&args.file)?;
    // A daemon that cannot be reached is an error; what it makes of the file is told.
    let daemon = args.connect.as_ref().map(Cache::connect).transpose()?;
    let frame = daemon.as_ref().map_or(FRAME, Cache::frame_bytes);
    let looked = look(&args.file, obstacle.is_none(), daemon.as_ref());
    let (reuse, because) = match &looked {
        Ok((coherence, _)) => trust(coherence),
        Err(error) => ("unknown", format!("it could not be looked at: {error:#}")),
    };
    let resident = looked.ok().and_then(|(_, resident)| resident);
    let (bytes, stored) = (meta.len(), meta.blocks() * 512);
    let (pages, frames) = (bytes.div_ceil(4096), bytes.div_ceil(frame));
    if args.json {
        let mut object = json!({
            "ok": true, "file": name.to_string(), "bytes": bytes, "stored_bytes": stored,
            "sparse": stored < bytes, "links": meta.nlink(), "writable": obstacle.is_none(),
            "pages": pages, "frame_bytes": frame, "frames": frames,
            "reuse": reuse, "reuse_detail": because,
        });
        if let Some(resident) = resident {
            object["resident_bytes"] = resident.into();
        }
        line(object.to_string())?;
        return Ok(true);
    }
    line(format!(
        "{name}: {} ({bytes} bytes), {} stored{}",
        human(bytes),
        human(stored),
        if stored < bytes { " (sparse or compressed: holes stay holes)" } else { "" }
    ))?;
    line(format!("  {pages} pages of 4 KiB; all of it takes {frames} frames of {}", human(frame)))?;
    line(match obstacle {
        None => "  can be written: write pins, writable mappings and keeping away work".into(),
        Some(why) => format!(
            "  cannot be written by us ({}): read pins and read-only mappings work",
            std::io::Error::from_raw_os_error(why)
        ),
    })?;
    line(format!("  copies on the device: {reuse}; {because}"))?;
    if let Some(resident) = resident {
        line(format!("  on the daemon's device now: {} ({resident} bytes)", human(resident)))?;
    }
    Ok(true)
}

/// What copies of the file rest on and, with a daemon, how many bytes of it are on its device.
fn look(
    path: &Path,
    writable: bool,
    daemon: Option<&Cache>,
) -> anyhow::Result<(Coherence, Option<u64>)> {
    let open = |cache: &Cache| if writable { cache.open(path) } else { cache.open_read_only(path) };
    match daemon {
        Some(cache) => {
            let file = open(cache)?;
            Ok((file.coherence()?, Some(resident_bytes(&file)?)))
        }
        None => Ok((open(&cache(LEAST, LEAST, None)?.0)?.coherence()?, None)),
    }
}

/// Bytes of a file that are on the device.
pub(crate) fn resident_bytes(file: &File) -> Result<u64, Error> {
    let len = file.len()?;
    if len == 0 {
        return Ok(0);
    }
    let placed = file.placement(0..len)?;
    let there = placed.iter().filter(|p| p.state != PageState::Home);
    Ok(there.map(|p| p.range.end - p.range.start).sum())
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
    let cache = connect_or(args.connect.as_deref(), || cache(LEAST, LEAST, None))?;
    let file = cache.open_read_only(&args.file)?;
    let end = args.off.checked_add(args.len).context("the range wraps")?;
    let placed = file.placement(args.off..end)?;
    if args.json {
        line(json!({ "ok": true, "ranges": placement_json(&placed) }).to_string())?;
        return Ok(true);
    }
    if placed.is_empty() {
        line("past the end of the file")?;
    }
    for p in placed {
        line(format!("{}..{} {}", p.range.start, p.range.end, crate::io::state_name(p.state)))?;
    }
    if args.connect.is_none() {
        line(
            "(this process has just begun: nothing can be on its device yet; `pageferry io` shows more)",
        )?;
    }
    Ok(true)
}
