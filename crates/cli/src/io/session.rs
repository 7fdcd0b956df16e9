//! The state of a workbench, and what each command does with it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pageferry::soft::{FailPoint, SoftDevice};
use pageferry::{After, Cache, File, Map, Pin, PinMode, View, Wait};
use serde_json::Value;

use super::command::{Command, Failure, Reply};
use super::{HELP, data, placement_json, state_name};
use crate::args::IoArgs;
use crate::output::{dump, hex};
use crate::setup;
use crate::size::human;

pub(super) struct Session {
    cache: Cache,
    device: Arc<SoftDevice>,
    file: File,
    pins: BTreeMap<u32, Pin>,
    next_pin: u32,
    map: Option<Map>,
}

type Done = Result<Reply, Failure>;

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

fn moved(verb: &str, range: &Range<u64>) -> String {
    format!("{verb} {} bytes at offset {}", len(range), range.start)
}

impl Session {
    pub(super) fn open(args: &IoArgs, age: Option<Duration>) -> anyhow::Result<Session> {
        let (cache, device) = setup::cache(args.device_memory, args.frame, age)?;
        let file = if args.create || args.truncate {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(args.create).truncate(args.truncate);
            let file = options.open(&args.file);
            let file = file.with_context(|| format!("opening {}", args.file.display()))?;
            cache.open_fd(file.as_fd())?
        } else if args.read_only {
            cache.open_read_only(&args.file)?
        } else {
            cache.open(&args.file)?
        };
        Ok(Session { cache, device, file, pins: BTreeMap::new(), next_pin: 1, map: None })
    }

    /// Releases what is held; what fails is returned.
    pub(super) fn close(mut self) -> Vec<Failure> {
        let mut failures: Vec<Failure> = Vec::new();
        for (_, pin) in std::mem::take(&mut self.pins) {
            failures.extend(pin.release().err().map(Failure::from));
        }
        if let Some(map) = self.map.take() {
            failures.extend(map.unmap().err().map(Failure::from));
        }
        failures.extend(self.file.close().err().map(Failure::from));
        failures
    }

    pub(super) fn run(&mut self, command: Command) -> Done {
        match command {
            Command::Pin { write, overwrite, timeout, range } => {
                self.pin(write, overwrite, timeout, range)
            }
            Command::Unpin { keep, id } => self.unpin(keep, id),
            Command::DRead { verbose, range } => {
                let bytes = self.with_view(&range, false, |view, _| data::read(view, &range))?;
                Ok(read_reply("device read", &range, &bytes, verbose))
            }
            Command::DWrite { byte, range } => {
                self.with_view(&range, true, |view, _| data::fill(view, &range, byte))?;
                Ok(Reply::line(moved("device wrote", &range)).with("bytes", len(&range)))
            }
            Command::DSum { range } => {
                let sum =
                    self.with_view(&range, false, |view, cache| data::sha256(cache, view, &range))?;
                let text = format!("{sum}  bytes {}..{}", range.start, range.end);
                Ok(Reply::line(text).with("sha256", sum).with("bytes", len(&range)))
            }
            Command::DAdd { n, range } => {
                self.with_view(&range, true, |view, cache| data::add(cache, view, &range, n))?;
                let whole = len(&range) / 4;
                Ok(Reply::line(format!(
                    "device added {n} to {whole} u32 at offset {}",
                    range.start
                ))
                .with("bytes", len(&range)))
            }
            Command::Mmap { read_only, range } => self.mmap(read_only, range),
            Command::MRead { verbose, range } => {
                let (map, at) = self.mapping(&range)?;
                let mut bytes = buffer(&range)?;
                map.read(at, &mut bytes)?;
                Ok(read_reply("mapping read", &range, &bytes, verbose))
            }
            Command::MWrite { byte, range } => {
                let (map, at) = self.mapping(&range)?;
                let mut bytes = buffer(&range)?;
                bytes.fill(byte);
                map.write(at, &bytes)?;
                Ok(Reply::line(moved("mapping wrote", &range)).with("bytes", len(&range)))
            }
            Command::Munmap => match self.map.take() {
                Some(map) => {
                    map.unmap()?;
                    Ok(Reply::line("unmapped"))
                }
                None => Err(no_mapping()),
            },
            Command::Msync => {
                let map = self.map.as_ref().ok_or_else(no_mapping)?;
                map.sync(0..map.len())?;
                Ok(Reply::line("synced the mapping"))
            }
            Command::PRead { verbose, range } => {
                let mut bytes = buffer(&range)?;
                let n = self.file.read_at(&mut bytes, range.start)?;
                bytes.truncate(n);
                let got = range.start..range.start + n as u64;
                Ok(read_reply("read", &got, &bytes, verbose))
            }
            Command::PWrite { byte, range } => {
                let mut bytes = buffer(&range)?;
                bytes.fill(byte);
                self.file.write_at(&bytes, range.start)?;
                Ok(Reply::line(moved("wrote", &range)).with("bytes", len(&range)))
            }
            other => self.run_on_file(other),
        }
    }

    fn run_on_file(&mut self, command: Command) -> Done {
        let file = &self.file;
        Ok(match command {
            Command::Fsync => file.sync().map(|()| Reply::line("synced"))?,
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
            Command::Stats => self.stats(),
            Command::Fail { point, count } => {
                let point: FailPoint = point.parse().map_err(|e| Failure::usage(format!("{e}")))?;
                self.device.arm(point, count);
                Reply::line(format!("{point} will fail")).with("count", count)
            }
            Command::Sleep { seconds } => {
                std::thread::sleep(Duration::from_secs_f64(seconds));
                Reply::line(format!("slept {seconds} s"))
            }
            Command::Shell { command } => shell(&command)?,
            _ => Reply::line(HELP),
        })
    }

    fn pin(
        &mut self,
        write: bool,
        overwrite: bool,
        timeout: Option<f64>,
        range: Range<u64>,
    ) -> Done {
        let mode = match (write, overwrite) {
            (_, true) => PinMode::Overwrite,
            (true, false) => PinMode::Write,
            (false, false) => PinMode::Read,
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
        let what = if mode == PinMode::Read { "reading" } else { "writing" };
        let text = format!("pin {id}: bytes {}..{} for {what}", range.start, range.end);
        Ok(Reply::line(text).with("pin", id).with("bytes", len(&range)))
    }

    fn unpin(&mut self, keep: bool, id: Option<u32>) -> Done {
        let id = id.or_else(|| self.pins.keys().next_back().copied());
        let id = id.ok_or_else(|| Failure::usage("unpin: nothing is pinned"))?;
        let pin = self
            .pins
            .remove(&id)
            .ok_or_else(|| Failure::usage(format!("unpin: there is no pin {id}")))?;
        let after = if keep { After::KeepAway } else { After::WriteBack };
        let bytes = pin.release_with(after)?;
        let text = if keep {
            format!("released pin {id}, what the device wrote stays away")
        } else {
            format!("released pin {id}, wrote back {bytes} bytes")
        };
        Ok(Reply::line(text).with("pin", id).with("bytes", bytes))
    }

    /// A view for the range: a pin's that covers it, or one that faults.
    fn with_view<T>(
        &self,
        range: &Range<u64>,
        writes: bool,
        work: impl FnOnce(&View<'_>, &Cache) -> Result<T, pageferry::Error>,
    ) -> Result<T, Failure> {
        let covers = |p: &&Pin| p.range().start <= range.start && range.end <= p.range().end;
        let covering: Vec<&Pin> = self.pins.values().filter(covers).collect();
        let writing = covering.iter().find(|p| p.mode() != PinMode::Read);
        if let Some(pin) = writing.or(covering.first()) {
            return Ok(work(&pin.view()?, &self.cache)?);
        }
        let view = self.file.view(writes)?;
        let result = work(&view, &self.cache);
        let closed = view.close();
        let value = result?;
        closed?;
        Ok(value)
    }

    fn mmap(&mut self, read_only: bool, range: Range<u64>) -> Done {
        // As in xfs_io, a new mapping becomes the current one.
        if let Some(old) = self.map.take() {
            old.unmap()?;
        }
        let map = self.file.map(range, !read_only)?;
        let (start, bytes) = (map.offset(), map.len() as u64);
        self.map = Some(map);
        Ok(Reply::line(format!("mapped bytes {start}..{}", start + bytes)).with("bytes", bytes))
    }

    /// The mapping and the offset in it of a range given in bytes of the file.
    fn mapping(&self, range: &Range<u64>) -> Result<(&Map, usize), Failure> {
        let map = self.map.as_ref().ok_or_else(no_mapping)?;
        let whole = map.offset()..map.offset() + map.len() as u64;
        if range.start < whole.start || range.end > whole.end {
            return Err(Failure::usage(format!(
                "bytes {}..{} are outside of the mapping of {}..{}",
                range.start, range.end, whole.start, whole.end
            )));
        }
        Ok((map, (range.start - whole.start) as usize))
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

fn no_mapping() -> Failure {
    Failure::usage("nothing is mapped; use mmap OFF LEN first")
}

/// A host buffer for a range; more than the machine could ever hold is an error, not an abort.
fn buffer(range: &Range<u64>) -> Result<Vec<u8>, Failure> {
    data::buffer(len(range)).map_err(Failure::from)
}

fn read_reply(what: &str, range: &Range<u64>, bytes: &[u8], verbose: bool) -> Reply {
    let mut reply = Reply::line(moved(what, range)).with("bytes", bytes.len() as u64);
    if verbose {
        reply.lines = dump(range.start, bytes).chain(reply.lines).collect();
        reply = reply.with("data", hex(bytes));
    }
    reply
}

fn shell(command: &str) -> Done {
    let failure = |message| Failure { kind: "shell".into(), errno: libc::ECHILD, message };
    let output = std::process::Command::new("sh")
        .args(["-c", command])
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|e| failure(format!("running sh: {e}")))?;
    if !output.status.success() {
        return Err(failure(format!("'{command}' ended with {}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    Ok(Reply::line(text.clone()).with("output", text))
}
