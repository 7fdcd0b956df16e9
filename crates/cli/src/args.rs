//! The command line.

mod daemon;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::size;
pub(crate) use daemon::{FilesArgs, ServeArgs, TopArgs};

/// A page cache in device memory for ordinary files.
///
/// Start with `pageferry demo`. Sizes take k, m, g and t (powers of 1024).
#[derive(Debug, Parser)]
#[command(name = "pageferry", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// See it work: device phases and an unmodified sha256sum take turns over one file.
    Demo(DemoArgs),
    /// Run a built-in kernel over files, also larger than the device's memory.
    Run(RunArgs),
    /// A workbench in the manner of xfs_io: pins, device and CPU accesses, failures.
    Io(IoArgs),
    /// What the cache would make of a file.
    Stat(FileArgs),
    /// Where a range of a file is (a fresh process has nothing on its device yet; --connect shows more).
    Where(WhereArgs),
    /// Serve one cache to all processes that connect, until told to stop.
    Serve(ServeArgs),
    /// Bring whole files onto a daemon's device, where they stay when this command ends.
    #[command(after_help = "The status is 0 if all of the files are on the device in the end.")]
    Load(FilesArgs),
    /// Take files off a daemon's device.
    Drop(FilesArgs),
    /// Who holds what of a daemon's cache, and what it does.
    Top(TopArgs),
    /// What this kernel and machine allow, and what follows.
    Doctor(DoctorArgs),
    /// Measure, each figure against a floor taken in the same run.
    Bench(BenchArgs),
    /// What `bench guards` starts as the other process; it reads from standard input what to do.
    #[command(hide = true)]
    Outsider,
}

impl Command {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Command::Demo(_) => "demo",
            Command::Run(_) => "run",
            Command::Io(_) => "io",
            Command::Stat(_) => "stat",
            Command::Where(_) => "where",
            Command::Serve(_) => "serve",
            Command::Load(_) => "load",
            Command::Drop(_) => "drop",
            Command::Top(_) => "top",
            Command::Doctor(_) => "doctor",
            Command::Bench(_) => "bench",
            Command::Outsider => "outsider",
        }
    }

    /// Programs read the output.
    pub(crate) fn json(&self) -> bool {
        match self {
            Command::Demo(args) => args.json,
            Command::Run(args) => args.json,
            Command::Io(args) => args.json,
            Command::Stat(args) => args.json,
            Command::Where(args) => args.json,
            Command::Load(args) => args.json,
            Command::Drop(args) => args.json,
            Command::Top(args) => args.json,
            Command::Doctor(args) => args.json,
            Command::Bench(args) => args.json,
            // The outsider's answers are JSON, and a daemon's log may be; what ends them is for people.
            Command::Serve(_) | Command::Outsider => false,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// A file to work on; it is copied first. Without it, one is made.
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
    /// Work on --file itself and leave it changed.
    #[arg(long, requires = "file")]
    pub(crate) in_place: bool,
    /// Bytes of the file that is made.
    #[arg(long, value_parser = size::parse, default_value = "256m")]
    pub(crate) size: u64,
    /// How often device and CPU take turns.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) phases: u32,
    /// Print one JSON object at the end instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KernelName {
    /// Sum of all little-endian u32 (a last partial one is padded with zeros), modulo 2^64.
    Sum,
    /// How often each byte value occurs.
    Histogram,
    /// Adds --value to every little-endian u32, in place.
    Add,
    /// Xors every byte with --value, in place.
    Xor,
    /// y = a*x + y over little-endian f32: FILEs are x and y; y is changed.
    Saxpy,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: pageferry run sum data.bin --device-memory 64m --json")]
pub(crate) struct RunArgs {
    /// Which kernel.
    pub(crate) kernel: KernelName,
    /// The files.
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Use the cache of the daemon that listens at PATH, instead of one of its own.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["device_memory", "frame"])]
    pub(crate) connect: Option<PathBuf>,
    /// Device memory to use.
    #[arg(long, value_parser = size::parse, default_value = "256m")]
    pub(crate) device_memory: u64,
    /// Bytes of a device frame: a power of two from 64k to 64m.
    #[arg(long, value_parser = size::parse, default_value = "2m")]
    pub(crate) frame: u64,
    /// Bytes that a kernel works on at a time. Default: a sixth of the device memory.
    #[arg(long, value_parser = size::parse)]
    pub(crate) window: Option<u64>,
    /// For add (any u32) and xor (0 to 255).
    #[arg(long, default_value_t = 1)]
    pub(crate) value: u32,
    /// For saxpy.
    #[arg(long, default_value_t = 2.0, allow_negative_numbers = true)]
    pub(crate) a: f32,
    /// Print a JSON object as the last line; its `result` holds the answer.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GuardName {
    /// Nobody: keeping away is refused.
    None,
    /// A lease while something is away: whoever opens the file waits until it is home.
    Lease,
    /// fanotify (needs root): whoever touches bytes that are away waits until they are home, and of what
    /// others change only those pages move again.
    Fanotify,
    /// The strongest that works for the file, while something is away.
    Auto,
}

#[derive(Debug, clap::Args)]
#[command(after_help = crate::io::HELP)]
pub(crate) struct IoArgs {
    /// The file.
    pub(crate) file: PathBuf,
    /// A command; may be repeated. Without any, commands are read from standard input.
    #[arg(short = 'c', value_name = "CMD", allow_hyphen_values = true)]
    pub(crate) commands: Vec<String>,
    /// Use the cache of the daemon that listens at PATH, instead of one of its own.
    #[arg(long, value_name = "PATH",
        conflicts_with_all = ["device_memory", "frame", "flush_age", "guard", "trust_stamps"])]
    pub(crate) connect: Option<PathBuf>,
    /// Device memory.
    #[arg(long, value_parser = size::parse, default_value = "64m")]
    pub(crate) device_memory: u64,
    /// Bytes of a device frame: a power of two from 64k to 64m.
    #[arg(long, value_parser = size::parse, default_value = "2m")]
    pub(crate) frame: u64,
    /// Away pages are written back after so many seconds; 0: never by age.
    #[arg(long, value_name = "SECONDS", value_parser = size::seconds, default_value = "5",
        allow_negative_numbers = true)]
    pub(crate) flush_age: f64,
    /// Who makes other programs wait for what is kept away.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) guard: GuardName,
    /// Use copies again as long as the file's size and times stay, instead of proving that nobody can
    /// have changed it.
    #[arg(long)]
    pub(crate) trust_stamps: bool,
    /// One JSON object for each command.
    #[arg(long)]
    pub(crate) json: bool,
    /// Stop at the first command that fails.
    #[arg(short = 'x')]
    pub(crate) exit_on_error: bool,
    /// Create the file if it is not there.
    #[arg(short = 'f')]
    pub(crate) create: bool,
    /// Open read-only; with -f after creating it.
    #[arg(short = 'r', conflicts_with = "truncate")]
    pub(crate) read_only: bool,
    /// Truncate the file when opening it.
    #[arg(short = 't')]
    pub(crate) truncate: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct FileArgs {
    /// The file.
    pub(crate) file: PathBuf,
    /// Use the cache of the daemon that listens at PATH, instead of one of its own.
    #[arg(long, value_name = "PATH")]
    pub(crate) connect: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WhereArgs {
    /// The file.
    pub(crate) file: PathBuf,
    /// First byte.
    #[arg(value_parser = size::parse)]
    pub(crate) off: u64,
    /// Bytes.
    #[arg(value_parser = size::parse)]
    pub(crate) len: u64,
    /// Use the cache of the daemon that listens at PATH, instead of one of its own.
    #[arg(long, value_name = "PATH")]
    pub(crate) connect: Option<PathBuf>,
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Print a JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `--help` of `bench` ends with.
const BENCH_HELP: &str = "\
guards, under each guard (none, lease, fanotify, auto):
  repin     pin and release where nothing happened; 4 KiB away elsewhere keep the guard up
  copies    what another process pays to open, read, write a file with copies on the device, and
            the bytes that the next pin moved for it
  away      the same of a file with bytes away, and the bytes that came home for it. Under a lease
            the open waits, under fanotify the first read or write
  invalidation  what moves again after another process wrote one page (none and fanotify)
The other process is this program once more. The floor is what it pays for an untouched file. A guard
that cannot be had here (not root, tmpfs) has a line that says so.

Example: pageferry bench guards --size 4g --rounds 5";

#[derive(Debug, clap::Args)]
#[command(after_help = BENCH_HELP)]
pub(crate) struct BenchArgs {
    /// Which: load, writeback, repin, moved, records, native, trap, guards, attach, request, crowd. Default: all.
    pub(crate) names: Vec<String>,
    /// Bytes of the file worked on.
    #[arg(long, value_parser = size::parse, default_value = "512m")]
    pub(crate) size: u64,
    /// Rounds of each measurement; the median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Print one JSON object for each figure.
    #[arg(long)]
    pub(crate) json: bool,
}
