//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::number;
use crate::settings::{Guard, Known, Sabotage, Settings};
use crate::weights::Weights;

/// Long random sequences over a file under a cache, and the same, plainly, over a twin.
///
/// One seed decides everything. After the first difference the sequence is written to a file that
/// --replay runs again. Sizes take k, m and g.
#[derive(Debug, Parser)]
#[command(name = "pageferry-fsx", version, max_term_width = 100)]
#[command(after_help = "Exit status: 0 no difference, 1 a difference (or a hang), 2 anything else.
Example: pageferry-fsx --seed 7 --ops 100k --dir /dev/shm --shrink")]
pub(crate) struct Args {
    /// Decides the sequence.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Operations.
    #[arg(long, value_parser = number::parse, default_value = "10000")]
    pub(crate) ops: u64,
    /// Seeds to run, one after another, from --seed on.
    #[arg(long, default_value_t = 1)]
    pub(crate) seeds: u64,
    /// Where the file and its twin are made, in a directory of their own.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub(crate) dir: PathBuf,
    /// The file itself; it is overwritten. The twin goes to --dir.
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
    /// Where the twin is made, if not in --dir.
    #[arg(long)]
    pub(crate) twin_dir: Option<PathBuf>,
    /// The file never grows beyond.
    #[arg(long, value_parser = number::parse, default_value = "1m")]
    pub(crate) size: u64,
    /// The file's size at first. Default: a quarter of --size.
    #[arg(long, value_parser = number::parse)]
    pub(crate) start: Option<u64>,
    /// Device memory.
    #[arg(long, value_parser = number::parse, default_value = "512k")]
    pub(crate) device_memory: u64,
    /// Bytes of a device frame.
    #[arg(long, value_parser = number::parse, default_value = "64k")]
    pub(crate) frame: u64,
    /// Bytes that a touch brings home.
    #[arg(long, value_parser = number::parse, default_value = "64k")]
    pub(crate) touch: u64,
    /// Milliseconds that bytes stay away at most; 0: no flusher, and nothing depends on time.
    #[arg(long, default_value_t = 0)]
    pub(crate) flush_age: u64,
    /// What keeps outsiders from bytes that are away. Without, they are flushed before each comes.
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) guard: Guard,
    /// The cache is a daemon's, to which the exerciser is connected.
    #[arg(long)]
    pub(crate) daemon: bool,
    /// kind=n,...: how often each kind is chosen; cache, own and foreign stand for all of theirs.
    #[arg(long, value_name = "LIST")]
    pub(crate) weights: Option<String>,
    /// Nobody else changes the file; others only read it.
    #[arg(long)]
    pub(crate) no_foreign: bool,
    /// Nobody else maps the file.
    #[arg(long)]
    pub(crate) no_foreign_maps: bool,
    /// No mappings through the cache.
    #[arg(long)]
    pub(crate) no_maps: bool,
    /// Compare all bytes by all paths after so many operations; 0: only at the end.
    #[arg(long, default_value_t = 100)]
    pub(crate) every: u64,
    /// Run this sequence instead; its first line has its settings.
    #[arg(long, conflicts_with_all = ["seed", "ops", "seeds", "weights"])]
    pub(crate) replay: Option<PathBuf>,
    /// Write the sequence there, whatever becomes of it.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// After a difference, make the sequence short, write it to a file and print it.
    #[arg(long)]
    pub(crate) shrink: bool,
    /// Seconds that shrinking may take.
    #[arg(long, default_value_t = 120)]
    pub(crate) shrink_seconds: u64,
    /// How often shrinking runs a sequence before it believes that it does not fail.
    #[arg(long, default_value_t = 1)]
    pub(crate) shrink_tries: u32,
    /// Where the failing sequence is written. Default: pageferry-fsx-SEED.ops in the temporary
    /// directory.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Seconds after which a step counts as hanging.
    #[arg(long, default_value_t = 60)]
    pub(crate) hang_seconds: u64,
    /// Print one JSON object at the end instead of lines.
    #[arg(long)]
    pub(crate) json: bool,
    /// Look past what this version is known to do wrong. Comma-separated.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) ignore: Vec<Known>,
    /// Make the twin wrong, to see that it is found.
    #[arg(long, value_enum, hide = true)]
    pub(crate) sabotage: Option<Sabotage>,
}

impl Args {
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        if self.size == 0 || self.size > 1 << 40 {
            anyhow::bail!("--size {} is not from 1 to 1024g", self.size);
        }
        let start = self.start.unwrap_or(self.size / 4);
        if start > self.size {
            anyhow::bail!("--start {start} is more than --size {}", self.size);
        }
        Ok(Settings {
            size: self.size,
            start,
            memory: self.device_memory,
            frame: self.frame,
            touch: self.touch,
            flush_age: self.flush_age,
            guard: self.guard,
            daemon: self.daemon,
            sabotage: self.sabotage,
            ignore: self.ignore.clone(),
        })
    }

    pub(crate) fn weights(&self) -> anyhow::Result<Weights> {
        let mut weights = Weights::default();
        if self.no_foreign {
            weights.no_outsiders();
        }
        if self.no_foreign_maps {
            weights.no_outside_maps();
        }
        if self.no_maps {
            weights.no_maps();
        }
        if let Some(list) = &self.weights {
            let changed = weights.change(list);
            changed.map_err(|e| anyhow::anyhow!("--weights: {e}"))?;
        }
        if weights.total() == 0 {
            anyhow::bail!("--weights: nothing is left to do");
        }
        Ok(weights)
    }
}
