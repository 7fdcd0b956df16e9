//! What is done, one operation at a time, as values and as lines of text.
//!
//! An operation says everything: replayed alone, it does the same again. Offsets are in the file.

use std::fmt;
use std::str::FromStr;

use crate::number;

/// Who accesses the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum By {
    /// This process, through the cache.
    Cache,
    /// This process, through descriptors and mappings of its own.
    Own,
    /// Another process.
    Foreign,
}

impl By {
    pub(crate) const ALL: [By; 3] = [By::Cache, By::Own, By::Foreign];

    pub(crate) fn name(self) -> &'static str {
        match self {
            By::Cache => "cache",
            By::Own => "own",
            By::Foreign => "foreign",
        }
    }
}

/// What a pin permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Read,
    Write,
    Overwrite,
}

/// A value of an operation, in text.
trait Value: Sized {
    fn put(&self) -> String;
    fn take(text: &str) -> Result<Self, String>;
}

impl Value for u64 {
    fn put(&self) -> String {
        if *self < 10 { self.to_string() } else { format!("{self:#x}") }
    }
    fn take(text: &str) -> Result<u64, String> {
        number::parse(text)
    }
}

impl Value for bool {
    fn put(&self) -> String {
        if *self { "yes".into() } else { "no".into() }
    }
    fn take(text: &str) -> Result<bool, String> {
        match text {
            "yes" => Ok(true),
            "no" => Ok(false),
            other => Err(format!("'{other}' is neither yes nor no")),
        }
    }
}

impl Value for Mode {
    fn put(&self) -> String {
        format!("{self:?}").to_lowercase()
    }
    fn take(text: &str) -> Result<Mode, String> {
        match text {
            "read" => Ok(Mode::Read),
            "write" => Ok(Mode::Write),
            "overwrite" => Ok(Mode::Overwrite),
            other => Err(format!("'{other}' is no mode (read, write or overwrite)")),
        }
    }
}

/// The `name=value` words of a line.
struct Words<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Words<'a> {
    fn new(words: impl Iterator<Item = &'a str>) -> Result<Words<'a>, String> {
        let pair = |w: &'a str| w.split_once('=').ok_or(format!("'{w}' is not name=value"));
        words.map(pair).collect::<Result<_, _>>().map(Words)
    }

    fn take<T: Value>(&mut self, name: &str) -> Result<T, String> {
        let at = self.0.iter().position(|(n, _)| *n == name);
        let at = at.ok_or_else(|| format!("'{name}=' is missing"))?;
        T::take(self.0.remove(at).1).map_err(|e| format!("{name}: {e}"))
    }

    fn nothing_left(&self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!("'{name}=' does not belong here, or comes twice")),
        }
    }
}

/// An enum whose variants are written as a word and `field=value` words.
macro_rules! operations {
    ($(#[$doc:meta])* $enum:ident {
        $($(#[$vdoc:meta])* $variant:ident $word:literal { $($field:ident: $type:ty),* })*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(crate) enum $enum { $($(#[$vdoc])* $variant { $($field: $type),* }),* }

        impl $enum {
            pub(crate) const WORDS: &'static [&'static str] = &[$($word),*];

            pub(crate) fn word(&self) -> &'static str {
                match self { $($enum::$variant { .. } => $word),* }
            }

            fn parse(word: &str, words: &mut Words<'_>) -> Result<$enum, String> {
                match word {
                    $($word => Ok($enum::$variant { $($field: words.take(stringify!($field))?),* }),)*
                    other => Err(format!("'{other}' is no operation; there are: {}", $enum::WORDS.join(", "))),
                }
            }
        }

        impl fmt::Display for $enum {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())?;
                match self {
                    $($enum::$variant { $($field),* } => {
                        $(write!(f, " {}={}", stringify!($field), $field.put())?;)*
                    })*
                }
                Ok(())
            }
        }
    };
}

operations! {
    /// What anybody can do to a file.
    Access {
        Read "read" { at: u64, len: u64 }
        Write "write" { at: u64, len: u64, fill: u64 }
        /// With `O_APPEND`.
        Append "append" { len: u64, fill: u64 }
        /// With `O_DIRECT`.
        Direct "direct" { at: u64, len: u64, fill: u64 }
        /// `copy_file_range` from another file.
        CopyFrom "copy-from" { at: u64, len: u64, fill: u64 }
        /// `ftruncate`.
        Resize "resize" { size: u64 }
        /// `truncate` by path.
        Truncate "truncate" { size: u64 }
        /// `O_TRUNC`.
        Empty "empty" { }
        Punch "punch" { at: u64, len: u64 }
        Zero "zero" { at: u64, len: u64, keep: bool }
        Allocate "allocate" { at: u64, len: u64, keep: bool }
        Collapse "collapse" { at: u64, len: u64 }
        Insert "insert" { at: u64, len: u64 }
        Sync "sync" { }
        /// Opens a descriptor that the next accesses use.
        Hold "hold" { }
        LetGo "let-go" { }
        Map "map" { slot: u64, at: u64, len: u64, writable: bool }
        Unmap "unmap" { slot: u64 }
        Load "load" { slot: u64, at: u64, len: u64 }
        Store "store" { slot: u64, at: u64, len: u64, fill: u64 }
    }
}

operations! {
    /// What only a cache can do.
    Act {
        Pin "pin" { slot: u64, at: u64, len: u64, mode: Mode }
        /// Loads through a pin that is held.
        DeviceLoad "device-load" { slot: u64, at: u64, len: u64 }
        DeviceStore "device-store" { slot: u64, at: u64, len: u64, fill: u64 }
        Release "release" { slot: u64, keep: bool }
        /// A read pin, looked at and released: what the device sees.
        See "see" { at: u64, len: u64 }
        /// A pin, one store from a kernel, and the release. The store may reach past the end of file.
        Stint "stint" { at: u64, len: u64, mode: Mode, from: u64, bytes: u64, fill: u64, keep: bool }
        /// A view on demand with so many accesses.
        View "view" { at: u64, len: u64, writable: bool, accesses: u64, fill: u64 }
        /// One store of eight bytes through a mapping, by the processor itself.
        Poke "poke" { slot: u64, at: u64, fill: u64 }
        Prefetch "prefetch" { at: u64, len: u64 }
        Evict "evict" { at: u64, len: u64 }
        Flush "flush" { at: u64, len: u64 }
        /// Closes the handle and opens another; pins and mappings live on.
        Reopen "reopen" { }
        /// Ends everything, the cache as well, and begins anew.
        Restart "restart" { }
        /// Compares all bytes by all paths.
        Check "check" { }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    By(By, Access),
    Act(Act),
}

impl Op {
    /// The word that `--weights` and the counts know it by.
    pub(crate) fn kind(&self) -> String {
        match self {
            Op::By(by, access) => kind(*by, access.word()),
            Op::Act(act) => act.word().into(),
        }
    }
}

pub(crate) fn kind(by: By, word: &str) -> String {
    format!("{}-{word}", by.name())
}

/// All kinds there are.
pub(crate) fn kinds() -> Vec<String> {
    let accesses = By::ALL.iter().flat_map(|by| Access::WORDS.iter().map(|w| kind(*by, w)));
    accesses.chain(Act::WORDS.iter().map(|w| (*w).into())).collect()
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::By(by, access) => write!(f, "{} {access}", by.name()),
            Op::Act(act) => act.fmt(f),
        }
    }
}

impl FromStr for Access {
    type Err = String;

    fn from_str(line: &str) -> Result<Access, String> {
        let mut words = line.split_whitespace();
        let word = words.next().ok_or("an operation is missing")?;
        let mut words = Words::new(words)?;
        let access = Access::parse(word, &mut words)?;
        words.nothing_left().map(|()| access)
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(line: &str) -> Result<Op, String> {
        let line = line.trim();
        let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if let Some(by) = By::ALL.into_iter().find(|by| by.name() == first) {
            return rest.parse().map(|access| Op::By(by, access));
        }
        let mut words = Words::new(rest.split_whitespace())?;
        let act = Act::parse(first, &mut words)?;
        words.nothing_left().map(|()| Op::Act(act))
    }
}
