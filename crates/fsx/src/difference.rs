//! What went wrong.

use std::fmt;

/// Bytes shown on each side of the first that differs.
const AROUND: usize = 16;

/// The file and its twin are not the same, or a call did what it must not.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    /// Which way of looking showed it: "device", "cache read", "mapping", "foreign read", ...
    pub(crate) path: &'static str,
    pub(crate) what: String,
    /// The first byte that differs, and what is around it.
    pub(crate) bytes: Option<Bytes>,
}

#[derive(Clone, Debug)]
pub(crate) struct Bytes {
    pub(crate) offset: u64,
    /// Where the two excerpts begin.
    from: u64,
    expected: Vec<u8>,
    got: Vec<u8>,
    /// How many of the bytes compared differ.
    count: usize,
}

impl Difference {
    pub(crate) fn new(path: &'static str, what: impl Into<String>) -> Difference {
        Difference { path, what: what.into(), bytes: None }
    }

    /// `None` if the bytes are the same; `at` is where they are in the file.
    pub(crate) fn between(
        path: &'static str,
        at: u64,
        expected: &[u8],
        got: &[u8],
    ) -> Option<Difference> {
        if expected == got {
            return None;
        }
        let differ = |(e, g): (&u8, &u8)| e != g;
        let common = expected.len().min(got.len());
        let first = expected.iter().zip(got).position(differ).unwrap_or(common);
        let from = first.saturating_sub(AROUND);
        let excerpt = |b: &[u8]| b[from..b.len().min(first + AROUND)].to_vec();
        let bytes = Bytes {
            offset: at + first as u64,
            from: at + from as u64,
            expected: excerpt(expected),
            got: excerpt(got),
            count: expected.iter().zip(got).filter(|p| differ(*p)).count(),
        };
        let what = if expected.len() == got.len() {
            format!("{} of {} bytes differ", bytes.count, expected.len())
        } else {
            format!("{} bytes instead of {}", got.len(), expected.len())
        };
        Some(Difference { path, what, bytes: Some(bytes) })
    }

    pub(crate) fn offset(&self) -> Option<u64> {
        self.bytes.as_ref().map(|b| b.offset)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)?;
        let Some(bytes) = &self.bytes else { return Ok(()) };
        let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
        write!(f, ", first at {:#x}", bytes.offset)?;
        write!(f, "\n  from {:#x}", bytes.from)?;
        write!(f, "\n  expected {}", hex(&bytes.expected))?;
        write!(f, "\n  got      {}", hex(&bytes.got))
    }
}

/// Why a step did not end well.
#[derive(Debug)]
pub(crate) enum Trouble {
    Difference(Box<Difference>),
    /// The tool itself could not go on: no space for the twin, no other process.
    Broken(anyhow::Error),
}

impl From<Difference> for Trouble {
    fn from(difference: Difference) -> Trouble {
        Trouble::Difference(Box::new(difference))
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Trouble {
        Trouble::Broken(error)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Trouble {
        Trouble::Broken(anyhow::Error::new(error).context("working on the twin"))
    }
}

pub(crate) type Step<T> = Result<T, Trouble>;
