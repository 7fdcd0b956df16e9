//! What a sequence runs under; written at the head of each sequence.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use pageferry::CacheConfig;
use pageferry::soft::{SoftConfig, SoftDevice};

use crate::home::Home;
use crate::number;

/// Whom the cache asks before it believes that nobody else uses the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Guard {
    /// Nobody: what is away is flushed before an outsider comes, as documented.
    None,
    Lease,
    Fanotify,
    Auto,
}

/// A mistake in what the twin does, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sabotage {
    /// Some of the device's stores do not reach the twin.
    SkipDeviceStore,
    /// Bytes that an outsider's copy brings are off by one place.
    ShiftCopies,
}

/// What this version is known to do wrong, and may be looked past to find what else there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Known {
    /// A release that keeps silent about stored bytes that a truncation dropped.
    SilentCut,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The file never grows beyond.
    pub(crate) size: u64,
    /// Its size at first.
    pub(crate) start: u64,
    pub(crate) memory: u64,
    pub(crate) frame: u64,
    pub(crate) touch: u64,
    /// Milliseconds; 0 for no flusher.
    pub(crate) flush_age: u64,
    pub(crate) guard: Guard,
    /// The cache is a daemon's.
    pub(crate) daemon: bool,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) ignore: Vec<Known>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            size: 1 << 20,
            start: 256 << 10,
            memory: 512 << 10,
            frame: 64 << 10,
            touch: 64 << 10,
            flush_age: 0,
            guard: Guard::None,
            daemon: false,
            sabotage: None,
            ignore: Vec::new(),
        }
    }
}

impl Settings {
    pub(crate) fn ignores(&self, known: Known) -> bool {
        self.ignore.contains(&known)
    }

    /// Outsiders may come at any time.
    pub(crate) fn guarded(&self) -> bool {
        self.guard != Guard::None
    }

    pub(crate) fn cache(&self) -> anyhow::Result<Home> {
        let soft = SoftConfig {
            frame_bytes: self.frame,
            capacity_bytes: self.memory,
            workers: 1,
            exportable: self.daemon,
            ..SoftConfig::default()
        };
        let device = SoftDevice::new(soft).context("making the software device")?;
        let age = Some(self.flush_age).filter(|ms| *ms > 0).map(Duration::from_millis);
        let config = CacheConfig::default().flush_age(age).touch_bytes(self.touch).copy_threads(1);
        let config = with_guard(config, self.guard)?;
        if self.daemon { Home::connected(device, config) } else { Home::embedded(device, config) }
    }
}

/// The one place that knows which guards the library has.
fn with_guard(config: CacheConfig, guard: Guard) -> anyhow::Result<CacheConfig> {
    match guard {
        Guard::None => Ok(config.guard(pageferry::Guard::None)),
        Guard::Lease => Ok(config.guard(pageferry::Guard::Lease)),
        Guard::Auto => Ok(config.guard(pageferry::Guard::Auto)),
        Guard::Fanotify => Ok(config.guard(pageferry::Guard::Fanotify)),
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { size, start, memory, frame, touch, flush_age, guard, .. } = self;
        let Settings { daemon, sabotage, ignore, .. } = self;
        write!(f, "set size={size} start={start} memory={memory} frame={frame} touch={touch}")?;
        write!(f, " flush-age={flush_age} guard={}", word(*guard))?;
        if *daemon {
            write!(f, " daemon=1")?;
        }
        sabotage.map_or(Ok(()), |s| write!(f, " sabotage={}", word(s)))?;
        ignore.iter().try_for_each(|known| write!(f, " ignore={}", word(*known)))
    }
}

fn word<T: clap::ValueEnum>(value: T) -> String {
    value.to_possible_value().map_or(String::new(), |v| v.get_name().into())
}

impl FromStr for Settings {
    type Err = String;

    /// Reads a `set` line; what it does not name stays at its default.
    fn from_str(line: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        for pair in line.split_whitespace().skip(1) {
            let (name, value) =
                pair.split_once('=').ok_or(format!("'{pair}' is not name=value"))?;
            let number = || number::parse(value);
            match name {
                "size" => settings.size = number()?,
                "start" => settings.start = number()?,
                "memory" => settings.memory = number()?,
                "frame" => settings.frame = number()?,
                "touch" => settings.touch = number()?,
                "flush-age" => settings.flush_age = number()?,
                "guard" => settings.guard = clap::ValueEnum::from_str(value, false)?,
                "daemon" => settings.daemon = number()? != 0,
                "sabotage" => settings.sabotage = Some(clap::ValueEnum::from_str(value, false)?),
                "ignore" => settings.ignore.push(clap::ValueEnum::from_str(value, false)?),
                other => return Err(format!("there is no setting '{other}'")),
            }
        }
        Ok(settings)
    }
}
