//! `io`: a workbench in the manner of xfs_io.
//!
//! A script is lines; a line is a command word and its arguments. All commands run on this one
//! thread, which therefore owns all pins: what would wait for them is refused, never hangs.

mod command;
mod data;
mod parse;
mod session;

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use pageferry::{PageState, Placement};
use serde_json::{Value, json};

use crate::args::IoArgs;
use crate::output::line;
use command::Failure;
use session::Session;

/// What `--help` and the `help` command say.
pub(crate) const HELP: &str = "\
Commands (OFF and LEN take k, m, g; [..] is optional):
  pin [-w] [-o] [-t SECONDS] OFF LEN   hold on the device: for writing, overwriting, with timeout
  unpin [-k] [ID]                      release the latest pin, or ID; -k keeps stores away
  dread [-v] OFF LEN                   the device reads        dsum OFF LEN     SHA-256 of that
  dwrite -S BYTE OFF LEN               the device writes       dadd N OFF LEN   adds N to each u32
  mmap [-r] OFF LEN | munmap | msync   map on the CPU (-r read-only); unmap; msync
  mread [-v] OFF LEN | mwrite -S BYTE OFF LEN    access the mapping, by file offset
  pread [-v] OFF LEN | pwrite -S BYTE OFF LEN    read and write through the cache
  fsync | truncate LEN | fpunch OFF LEN | fzero [-k] OFF LEN | falloc [-k] OFF LEN
  fcollapse OFF LEN | finsert OFF LEN
  prefetch OFF LEN | evict OFF LEN | flush [OFF LEN] | where OFF LEN | stats
  fail POINT [COUNT]                   alloc, copy-in, copy-out, device-lost
  sleep SECONDS | !COMMAND | help | quit
Inside a pin the d-commands use it; outside they fault like a device.
Example: pageferry io data.bin -c 'pin -w 0 64k' -c 'dwrite -S 7 0 4k' -c unpin -c 'pread -v 0 16'";

pub(crate) fn io(args: &IoArgs) -> anyhow::Result<bool> {
    let age = match args.flush_age {
        0.0 => None,
        s => Some(Duration::try_from_secs_f64(s).context("--flush-age")?),
    };
    let mut session = Session::open(args, age)?;
    let mut ok = true;
    if args.commands.is_empty() {
        let prompts = std::io::stdin().is_terminal();
        let mut lines = std::io::stdin().lock().lines();
        loop {
            if prompts {
                print!("pageferry> ");
                std::io::stdout().flush()?;
            }
            let Some(command) = lines.next() else { break };
            if !step(&mut session, &command.context("reading commands")?, args, &mut ok)? {
                break;
            }
        }
    } else {
        for command in &args.commands {
            if !step(&mut session, command, args, &mut ok)? {
                break;
            }
        }
    }
    for failure in session.close() {
        eprintln!("pageferry: at the end: {}", failure.message);
        ok = false;
    }
    Ok(ok)
}

/// Runs one line. `false`: no more.
fn step(session: &mut Session, text: &str, args: &IoArgs, ok: &mut bool) -> anyhow::Result<bool> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(true);
    }
    let word = match text.strip_prefix('!') {
        Some(_) => "!",
        None => text.split_whitespace().next().unwrap_or_default(),
    };
    if matches!(word, "quit" | "q") {
        return Ok(false);
    }
    let result = parse::parse(text).and_then(|command| session.run(command));
    *ok &= result.is_ok();
    if args.json {
        let (mut object, error) = match &result {
            Ok(reply) => (reply.fields.clone(), Value::Null),
            Err(Failure { kind, errno, message }) => (
                serde_json::Map::new(),
                json!({ "kind": kind, "errno": errno, "message": message }),
            ),
        };
        object.insert("cmd".into(), word.into());
        object.insert("line".into(), text.into());
        object.insert("ok".into(), result.is_ok().into());
        object.insert("error".into(), error);
        line(Value::Object(object).to_string())?;
    } else {
        match &result {
            Ok(reply) => {
                for text in &reply.lines {
                    line(text)?;
                }
            }
            Err(failure) => eprintln!("pageferry: {text}: {}", failure.message),
        }
    }
    Ok(result.is_ok() || !args.exit_on_error)
}

/// The word for a state.
pub(crate) fn state_name(state: PageState) -> &'static str {
    match state {
        PageState::Home => "home",
        PageState::Copy => "copy",
        PageState::Away => "away",
    }
}

/// Placements as JSON.
pub(crate) fn placement_json(placed: &[Placement]) -> Value {
    let one = |p: &Placement| {
        let len = p.range.end - p.range.start;
        json!({ "off": p.range.start, "len": len, "state": state_name(p.state), "pinned": p.pinned })
    };
    placed.iter().map(one).collect()
}
