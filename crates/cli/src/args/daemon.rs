//! The command line of what has to do with a daemon.

use std::path::PathBuf;

use super::GuardName;
use crate::size;

/// What `--help` of `serve` ends with.
const SERVE_HELP: &str = "\
Clients: Cache::connect(PATH) in programs, --connect PATH of this command. A client may pin what it can open;
the copies on the device are shared, and stay when it ends.

Signals: TERM and INT write everything back and end it (a second one ends it at once); HUP reads --limits again,
and no client notices. The status is not 0 if something could not be written back.

Limits, a TOML file of any of these (with their defaults):
  sessions = 1024                  at once            sessions_per_user = 256
  files = 1024                     of a session       pins = 65536          of a session
  pinned_bytes = \"4g\"              of a session       pinned_bytes_per_user = \"8g\"   (default: none)
  requests = 64                    of a session under way at once
  kept_files = 4096                open for the sake of their copies only
  maps = 4096                      mappings of a session
  reply_time = 10                  seconds to read an answer
  served_file_systems = false      take files on FUSE, NFS, ... whose servers may never answer

Logs go to standard error; PAGEFERRY_LOG is error, warn, info (the default), debug, trace or off.

Example: pageferry serve --socket /run/user/1000/pageferry --device-memory 4g";

#[derive(Debug, clap::Args)]
#[command(after_help = SERVE_HELP)]
pub(crate) struct ServeArgs {
    /// Where clients connect. Not needed, and not used, where systemd hands over a socket.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Permissions of the socket, in octal: who may write to it may connect.
    #[arg(long, value_name = "OCTAL", value_parser = octal, default_value = "0600")]
    pub(crate) socket_mode: u32,
    /// Device memory.
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    pub(crate) device_memory: u64,
    /// Bytes of a device frame: a power of two from 64k to 64m.
    #[arg(long, value_parser = size::parse, value_name = "SIZE", default_value = "2m")]
    pub(crate) frame: u64,
    /// Away pages are written back after so many seconds; 0: never by age.
    #[arg(long, value_name = "SECONDS", value_parser = size::seconds, default_value = "5",
        allow_negative_numbers = true)]
    pub(crate) flush_age: f64,
    /// Who makes other programs wait for what is kept away.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) guard: GuardName,
    /// Use copies again as long as a file's size and times stay, instead of proving that nobody can have
    /// changed it.
    #[arg(long)]
    pub(crate) trust_stamps: bool,
    /// What clients may hold: a file, see below. Read again on HUP.
    #[arg(long, value_name = "FILE")]
    pub(crate) limits: Option<PathBuf>,
    /// Take files on file systems that another process or machine serves, whatever the limits say.
    #[arg(long)]
    pub(crate) served_file_systems: bool,
    /// A second socket, which answers HTTP with metrics for Prometheus (docs/metrics.md).
    #[arg(long, value_name = "PATH")]
    pub(crate) metrics: Option<PathBuf>,
    /// Log JSON objects, one a line.
    #[arg(long)]
    pub(crate) log_json: bool,
}

/// Files, for a daemon to do something with.
#[derive(Debug, clap::Args)]
pub(crate) struct FilesArgs {
    /// The files.
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Where the daemon listens.
    #[arg(long, value_name = "PATH")]
    pub(crate) connect: PathBuf,
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Whoever is not the daemon's user sees the sessions of its own only.")]
pub(crate) struct TopArgs {
    /// Where the daemon listens.
    #[arg(long, value_name = "PATH")]
    pub(crate) connect: PathBuf,
    /// Look once, and print what was counted since the daemon began.
    #[arg(long)]
    pub(crate) once: bool,
    /// Print one JSON object for each look.
    #[arg(long)]
    pub(crate) json: bool,
    /// Seconds between looks.
    #[arg(long, value_name = "SECONDS", value_parser = size::interval, default_value = "1",
        allow_negative_numbers = true)]
    pub(crate) interval: f64,
}

/// Parses permissions.
fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text.trim_start_matches("0o"), 8).ok();
    mode.filter(|mode| *mode <= 0o777 && !text.starts_with('+'))
        .ok_or_else(|| format!("'{text}' is no octal mode from 0 to 777"))
}
