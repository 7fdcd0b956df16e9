//! The state of a workbench, and what each command does with it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pageferry::soft::{FailPoint, SoftDevice};
use pageferry::{After, Cache, Error, File, Map, Pin, PinMode, Wait};
use serde_json::Value;

use super::command::{Command, Fill, Look, Reply, is_write_back};
use super::{HELP, data, placement_json, state_name};
use crate::args::IoArgs;
use crate::failure::Failure;
use crate::output::hex;
use crate::setup;
use crate::size::human;

pub(super) struct Session {
    pub(super) cache: Cache,
    /// `None`: the device is a daemon's.
    device: Option<Arc<SoftDevice>>,
    pub(super) file: File,
    pub(super) pins: BTreeMap<u32, Pin>,
    next_pin: u32,
    pub(super) map: Option<Map>,
}

pub(super) type Done = Result<Reply, Failure>;

pub(super) fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

pub(super) fn moved(verb: &str, range: &Range<u64>) -> String {
    format!("{verb} {} bytes at offset {}", len(range), range.start)
}

impl Session {
    pub(super) fn open(args: &IoArgs) -> anyhow::Result<Session> {
        let (cache, device) = match &args.connect {
            Some(daemon) => (Cache::connect(daemon)?, None),
            None => {
                let config = setup::config(args.guard, args.trust_stamps, args.flush_age);
                let (cache, device) = setup::cache_with(args.device_memory, args.frame, config)?;
                (cache, Some(device))
            }
        };
        let file = open_file(&cache, args)?;
        Ok(Session { cache, device, file, pins: BTreeMap::new(), next_pin: 1, map: None })
    }

    /// Releases what is held; returns what has to be said about that.
    pub(super) fn close(mut self) -> Vec<String> {
        let mut errors: Vec<Error> = Vec::new();
        for (_, pin) in std::mem::take(&mut self.pins) {
            errors.extend(pin.release().err());
        }
        if let Some(map) = self.map.take() {
            errors.extend(map.unmap().err());
        }
        errors.extend(self.file.close().err());
        // A daemon keeps what it has been told of, and tries again by itself.
        let is_own = self.device.is_some();
        let lost = if is_own { setup::lost_bytes(&self.cache) } else { 0 };
        if is_own && lost == 0 {
            // A later try wrote back what an earlier one could not.
            errors.retain(|e| !is_write_back(e));
        }
        let mut told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        told.dedup();
        if lost > 0 {
            told.push(format!(
                "{lost} bytes that the device wrote are LOST: they could not be written back"
            ));
        }
        told
    }

    pub(super) fn run(&mut self, command: Command) -> Done {
        match command {
            Command::Pin { write, overwrite, timeout, range } => {
                self.pin(write, overwrite, timeout, range)
            }
            Command::Unpin { keep, id } => self.unpin(keep, id),
            Command::DRead { verbose, range } => self.dread(verbose, &range),
            Command::DWrite { byte, range } => self.dwrite(byte, &range),
            Command::DSum { range } => self.dsum(&range),
            Command::DAdd { n, range } => self.dadd(n, &range),
            Command::Mmap { read_only, range } => self.mmap(read_only, range),
            Command::MRead { verbose, range } => self.mread(verbose, range),
            Command::MWrite { byte, range } => self.mwrite(byte, range),
            Command::Munmap => self.munmap(),
            Command::Msync { waits, range } => self.msync(waits, range),
            Command::PRead { look, range } => self.pread(look, &range),
            Command::PWrite { fill, range } => self.pwrite(fill, &range),
            Command::Stats => Ok(self.stats()),
            Command::Fail { point, count } => self.fail(&point, count),
            Command::Sleep { seconds } => {
                std::thread::sleep(Duration::from_secs_f64(seconds));
                Ok(Reply::line(format!("slept {seconds} s")))
            }
            Command::Shell { command } => shell(&command),
            Command::Help => Ok(Reply::line(HELP).with("text", HELP)),
            other => self.run_on_file(other),
        }
    }

    fn run_on_file(&self, command: Command) -> Done {
        let file = &self.file;
        Ok(match command {
            Command::Truncate { bytes } => {
                file.set_len(bytes)?;
                Reply::line(format!("truncated to {bytes} bytes")).with("bytes", bytes)
            }
            Command::Punch { range } => {
                file.punch_hole(range.clone())?;
                Reply::line(moved("punched", &range))
            }
            Command::Zero { keep_size, range } => {
                file.zero_range(range.clone(), keep_size)?;
                Reply::line(moved("zeroed", &range))
            }
            Command::Allocate { keep_size, range } => {
                file.allocate(range.clone(), keep_size)?;
                Reply::line(moved("allocated", &range))
            }
            Command::Collapse { range } => {
                file.collapse_range(range.clone())?;
                Reply::line(moved("collapsed", &range))
            }
            Command::Insert { range } => {
                file.insert_range(range.clone())?;
                Reply::line(moved("inserted", &range))
            }
            Command::Prefetch { range } => {
                let bytes = file.prefetch(range.clone())?;
                Reply::line(format!("{bytes} of {} bytes are on the device", len(&range)))
                    .with("bytes", bytes)
            }
            Command::Evict { range } => {
                let bytes = file.evict(range)?;
                Reply::line(format!("evicted {bytes} bytes")).with("bytes", bytes)
            }
            Command::Flush { range } => {
                let bytes = file.flush(range)?;
                Reply::line(format!("wrote back {bytes} bytes")).with("bytes", bytes)
            }
            Command::Where { range } => self.placement(range)?,
            _ => file.sync().map(|()| Reply::line("synced"))?,
        })
    }

    fn pread(&self, look: Look, range: &Range<u64>) -> Done {
        // No further than the file: the buffer and the time depend on it.
        let end = range.end.min(self.file.len()?).max(range.start);
        let read = |bytes: &mut [u8], at| self.file.read_at(bytes, at);
        let (bytes, n) = data::pull(&(range.start..end), look.buffer, look.verbose, read)?;
        Ok(read_reply("read", range.start, n, bytes).quiet(look.quiet))
    }

    fn pwrite(&self, fill: Fill, range: &Range<u64>) -> Done {
        if i64::try_from(range.end).is_err() {
            let (start, end) = (range.start, range.end);
            let text = format!("bytes {start}..{end} end beyond the largest file there can be");
            return Err(Failure::told(
                &Error::Os { what: String::new(), errno: libc::EFBIG },
                text,
            ));
        }
        let write = |bytes: &[u8], at| self.file.write_at(bytes, at);
        data::push(range, fill.buffer, fill.byte, write)?;
        Ok(Reply::line(moved("wrote", range)).with("bytes", len(range)).quiet(fill.quiet))
    }

    fn pin(
        &mut self,
        write: bool,
        overwrite: bool,
        timeout: Option<f64>,
        range: Range<u64>,
    ) -> Done {
        let (mode, what) = match (write, overwrite) {
            (_, true) => (PinMode::Overwrite, "overwriting"),
            (true, false) => (PinMode::Write, "writing"),
            (false, false) => (PinMode::Read, "reading"),
        };
        let wait = match timeout {
            None => Wait::Block,
            Some(0.0) => Wait::Try,
            Some(seconds) => Wait::Timeout(Duration::from_secs_f64(seconds)),
        };
        let pin = self.file.pin_wait(range.clone(), mode, wait)?;
        let id = self.next_pin;
        self.next_pin += 1;
        self.pins.insert(id, pin);
        let text = format!("pin {id}: bytes {}..{} for {what}", range.start, range.end);
        Ok(Reply::line(text).with("pin", id).with("bytes", len(&range)))
    }

    fn unpin(&mut self, keep: bool, id: Option<u32>) -> Done {
        let id = id.or_else(|| self.pins.keys().next_back().copied());
        let id = id.ok_or_else(|| Failure::usage("nothing is pinned"))?;
        let pin = self.pins.remove(&id);
        let pin = pin.ok_or_else(|| Failure::usage(format!("there is no pin {id}")))?;
        // The device cannot have stored anything under a pin for reading.
        let keep = keep && pin.mode() != PinMode::Read;
        let after = if keep { After::KeepAway } else { After::WriteBack };
        let bytes = pin.release_with(after)?;
        let text = if keep {
            format!("released pin {id}, what the device wrote stays away")
        } else {
            format!("released pin {id}, wrote back {bytes} bytes")
        };
        Ok(Reply::line(text).with("pin", id).with("bytes", bytes))
    }

    fn fail(&self, point: &str, count: u32) -> Done {
        let Some(device) = &self.device else {
            let text = "failures are armed on a device of one's own; this one is a daemon's";
            return Err(Error::Unsupported(text.into()).into());
        };
        let point: FailPoint = point.parse().map_err(|e| Failure::usage(format!("{e}")))?;
        let text = match (point, count) {
            (FailPoint::Lost, 0) => {
                // The device cannot forget this one alone.
                device.disarm();
                "nothing is armed any more".into()
            }
            (FailPoint::Lost, _) => "the device will be lost at its next operation".into(),
            (point, 0) => format!("{point} is disarmed"),
            (point, 1) => format!("the next {point} will fail"),
            (point, n) => format!("the next {n} of {point} will fail"),
        };
        if (point, count) != (FailPoint::Lost, 0) {
            device.arm(point, count);
        }
        Ok(Reply::line(text).with("count", count))
    }

    fn placement(&self, range: Range<u64>) -> Done {
        let placed = self.file.placement(range)?;
        let one = |p: &pageferry::Placement| {
            let pinned = if p.pinned { " pinned" } else { "" };
            format!("{}..{} {}{pinned}", p.range.start, p.range.end, state_name(p.state))
        };
        let texts: Vec<String> = placed.iter().map(one).collect();
        let text =
            if texts.is_empty() { "past the end of the file".into() } else { texts.join(", ") };
        Ok(Reply::line(text).with("ranges", placement_json(&placed)))
    }

    fn stats(&self) -> Reply {
        let stats = self.cache.stats();
        let show = |c: &pageferry::Counter| match c.unit {
            "bytes" => format!("{}={} ({})", c.name, c.value, human(c.value)),
            _ => format!("{}={}", c.name, c.value),
        };
        let text: Vec<String> = stats.counters().iter().filter(|c| c.value > 0).map(show).collect();
        let all = stats.counters().iter().map(|c| (c.name.to_owned(), Value::from(c.value)));
        Reply::line(text.join(" ")).with("counters", Value::Object(all.collect()))
    }
}

/// Opens the file as the options say, as xfs_io would.
fn open_file(cache: &Cache, args: &IoArgs) -> anyhow::Result<File> {
    let path = &args.file;
    let is_new =
        || std::fs::metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    if args.create && is_new() {
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("creating {}", path.display()))?;
    }
    if args.read_only {
        return Ok(cache.open_read_only(path)?);
    }
    let file = cache.open(path).map_err(|error| {
        let denied = [libc::EACCES, libc::EPERM, libc::EROFS, libc::ETXTBSY];
        let readable = denied.contains(&error.errno()) && cache.open_read_only(path).is_ok();
        let hint = format!("{error}; -r opens it for reading only");
        let error = anyhow::Error::from(error);
        if readable { error.context(hint) } else { error }
    })?;
    if args.truncate {
        file.set_len(0)?;
    }
    Ok(file)
}

pub(super) fn read_reply(verb: &str, start: u64, n: u64, bytes: Option<Vec<u8>>) -> Reply {
    let mut reply = Reply::line(moved(verb, &(start..start + n))).with("bytes", n);
    if let Some(bytes) = bytes {
        reply = reply.with("data", hex(&bytes));
        reply.dump = Some((start, bytes));
    }
    reply
}

fn shell(command: &str) -> Done {
    let failure =
        |message, output| Failure { kind: "shell".into(), errno: libc::ECHILD, message, output };
    let output = std::process::Command::new("sh")
        .args(["-c", command])
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|e| failure(format!("running sh: {e}"), None))?;
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    if !output.status.success() {
        return Err(failure(format!("'{command}' ended with {}", output.status), Some(text)));
    }
    Ok(Reply::line(text.clone()).with("output", text))
}
