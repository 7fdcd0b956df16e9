//! `io`: a workbench in the manner of xfs_io.
//!
//! A script is lines; a line is a command word and its arguments. All commands run on this one
//! thread, which therefore owns all pins: what would wait for them is refused, never hangs.

mod command;
mod data;
mod device;
mod mapping;
mod parse;
mod script;
mod session;
mod words;

use pageferry::{PageState, Placement};
use serde_json::{Value, json};

use crate::args::IoArgs;
use script::Script;
use session::Session;

/// What `--help` and the `help` command say.
pub(crate) const HELP: &str = "\
Commands (OFF and LEN take k, m, g; [..] is optional; options may stand anywhere):
  pin [-w] [-o] [-t SECONDS] OFF LEN   hold on the device: for writing, overwriting, with timeout
  unpin [-k] [ID]                      release the latest pin, or ID; -k keeps stores away
  dread [-v] OFF LEN                   the device reads        dsum OFF LEN     SHA-256 of that
  dwrite -S BYTE OFF LEN               the device writes       dadd N OFF LEN   adds N to each u32
  mmap [-r] [-w] OFF LEN | munmap      map on the CPU (-r alone: read-only); unmap
  mread [-v] [OFF LEN]                 read the mapping, by file offset
  mwrite [-S BYTE] [OFF LEN]           write the mapping (default byte: 'X')
  msync [-s|-a] [OFF LEN]              bring home and, unless -a, wait until it is stored
  pread [-v] [-q] [-b SIZE] OFF LEN    read through the cache, SIZE bytes at a time; -q: quietly
  pwrite [-S BYTE] [-q] [-b SIZE] OFF LEN        write through it (default byte: 0xcd)
  fsync | truncate LEN | fpunch OFF LEN | fzero [-k] OFF LEN | falloc [-k] OFF LEN
  fcollapse OFF LEN | finsert OFF LEN
  prefetch OFF LEN | evict OFF LEN | flush [OFF LEN] | where OFF LEN | stats
  fail POINT [COUNT]                   alloc, copy-in, copy-out, device-lost; COUNT 0 disarms
                                       (not through a daemon, whose device others use)
  sleep SECONDS | !COMMAND | help | quit | exit
pin -o begins with zeros: a page that is stored to in part is zeros for the rest, others keep the file's bytes.
flush and fsync fail with would-deadlock where pin -w holds bytes that are away: unpin first.
Inside a pin the d-commands use it; outside they fault like a device.
Example: pageferry io data.bin -c 'pin -w 0 64k' -c 'dwrite -S 7 0 4k' -c unpin -c 'pread -v 0 16'";

pub(crate) fn io(args: &IoArgs) -> anyhow::Result<bool> {
    let mut script = Script::new(Session::open(args)?, args);
    if args.commands.is_empty() {
        script.read();
    } else {
        // Stops at the first that says so.
        let _ = args.commands.iter().all(|command| script.step(command.as_bytes()));
    }
    Ok(script.end())
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
