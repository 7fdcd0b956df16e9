//! From a line to a command.

use std::ops::Range;

use super::command::{Command, Failure};
use crate::size;

type Parsed<T> = Result<T, Failure>;

/// The arguments of a command, taken one by one.
struct Words<'a> {
    name: &'a str,
    words: std::iter::Peekable<std::str::SplitWhitespace<'a>>,
}

impl<'a> Words<'a> {
    /// Takes a flag if it is next.
    fn flag(&mut self, flag: &str) -> bool {
        self.words.next_if(|w| *w == flag).is_some()
    }

    fn word(&mut self, what: &str) -> Parsed<&'a str> {
        let missing = || Failure::usage(format!("{}: {what} is missing; try help", self.name));
        self.words.next().ok_or_else(missing)
    }

    fn size(&mut self, what: &str) -> Parsed<u64> {
        let word = self.word(what)?;
        size::parse(word).map_err(|e| Failure::usage(format!("{}: {what}: {e}", self.name)))
    }

    fn range(&mut self) -> Parsed<Range<u64>> {
        let (off, len) = (self.size("OFF")?, self.size("LEN")?);
        let end = off.checked_add(len);
        let wraps = || Failure::usage(format!("{}: OFF + LEN is more than 2^64", self.name));
        Ok(off..end.ok_or_else(wraps)?)
    }

    fn pattern(&mut self) -> Parsed<u8> {
        if !self.flag("-S") {
            return Err(Failure::usage(format!("{}: -S BYTE is missing; try help", self.name)));
        }
        let word = self.word("BYTE")?;
        size::byte(word).map_err(|e| Failure::usage(format!("{}: {e}", self.name)))
    }

    fn seconds(&mut self) -> Parsed<f64> {
        let word = self.word("SECONDS")?;
        let seconds = word.parse().ok().filter(|s: &f64| s.is_finite() && (0.0..=1e9).contains(s));
        let wrong = || Failure::usage(format!("{}: '{word}' is not a time in seconds", self.name));
        seconds.ok_or_else(wrong)
    }

    fn number(word: &str, name: &str) -> Parsed<u32> {
        let value = size::parse(word).ok().and_then(|n| u32::try_from(n).ok());
        value.ok_or_else(|| {
            Failure::usage(format!("{name}: '{word}' is not a number from 0 to 2^32-1"))
        })
    }

    fn end(mut self) -> Parsed<()> {
        match self.words.next() {
            None => Ok(()),
            Some(more) => Err(Failure::usage(format!("{}: what is '{more}'? try help", self.name))),
        }
    }
}

/// Parses one line, which is not empty.
pub(super) fn parse(line: &str) -> Parsed<Command> {
    if let Some(command) = line.strip_prefix('!') {
        return Ok(Command::Shell { command: command.trim().to_owned() });
    }
    let mut words = line.split_whitespace().peekable();
    let name = words.next().unwrap_or_default();
    let mut w = Words { name, words };
    let command = match name {
        "pin" => pin(&mut w)?,
        "unpin" => {
            let keep = w.flag("-k");
            let id = w.words.next().map(|word| Words::number(word, name)).transpose()?;
            Command::Unpin { keep, id }
        }
        "dread" => Command::DRead { verbose: w.flag("-v"), range: w.range()? },
        "mread" => Command::MRead { verbose: w.flag("-v"), range: w.range()? },
        "pread" => Command::PRead { verbose: w.flag("-v"), range: w.range()? },
        "dwrite" => Command::DWrite { byte: w.pattern()?, range: w.range()? },
        "mwrite" => Command::MWrite { byte: w.pattern()?, range: w.range()? },
        "pwrite" => Command::PWrite { byte: w.pattern()?, range: w.range()? },
        "dsum" => Command::DSum { range: w.range()? },
        "dadd" => Command::DAdd { n: Words::number(w.word("N")?, name)?, range: w.range()? },
        "mmap" => {
            let read_only = w.flag("-r");
            // xfs_io also has -w, which is the default here.
            let _ = w.flag("-w");
            Command::Mmap { read_only, range: w.range()? }
        }
        "munmap" => Command::Munmap,
        "msync" => Command::Msync,
        "fsync" => Command::Fsync,
        "truncate" => Command::Truncate { bytes: w.size("LEN")? },
        "fpunch" => Command::Punch { range: w.range()? },
        "fzero" => Command::Zero { keep_size: w.flag("-k"), range: w.range()? },
        "falloc" => Command::Allocate { keep_size: w.flag("-k"), range: w.range()? },
        "fcollapse" => Command::Collapse { range: w.range()? },
        "finsert" => Command::Insert { range: w.range()? },
        "prefetch" => Command::Prefetch { range: w.range()? },
        "evict" => Command::Evict { range: w.range()? },
        "flush" if w.words.peek().is_none() => Command::Flush { range: 0..u64::MAX },
        "flush" => Command::Flush { range: w.range()? },
        "where" => Command::Where { range: w.range()? },
        "stats" => Command::Stats,
        "fail" => {
            let point = w.word("POINT")?.to_owned();
            let count = w.words.next().map(|word| Words::number(word, name)).transpose()?;
            Command::Fail { point, count: count.unwrap_or(1) }
        }
        "sleep" => Command::Sleep { seconds: w.seconds()? },
        "help" | "?" => Command::Help,
        _ => return Err(Failure::usage(format!("there is no command '{name}'; try help"))),
    };
    w.end()?;
    Ok(command)
}

fn pin(w: &mut Words<'_>) -> Parsed<Command> {
    let (mut write, mut overwrite, mut timeout) = (false, false, None);
    loop {
        if w.flag("-w") {
            write = true;
        } else if w.flag("-o") {
            overwrite = true;
        } else if w.flag("-t") {
            timeout = Some(w.seconds()?);
        } else {
            return Ok(Command::Pin { write, overwrite, timeout, range: w.range()? });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_as_xfs_io_takes_them() {
        assert_eq!(
            parse("pwrite -S 0xcd 4k 8k"),
            Ok(Command::PWrite { byte: 0xcd, range: 4096..12288 })
        );
        assert_eq!(
            parse("  pin -w -t 0.5 0 1m "),
            Ok(Command::Pin {
                write: true,
                overwrite: false,
                timeout: Some(0.5),
                range: 0..1 << 20
            })
        );
        assert_eq!(parse("unpin -k 3"), Ok(Command::Unpin { keep: true, id: Some(3) }));
        assert_eq!(parse("!echo  a"), Ok(Command::Shell { command: "echo  a".into() }));
        assert_eq!(parse("flush"), Ok(Command::Flush { range: 0..u64::MAX }));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("pin 0", "LEN is missing"),
            ("pin 0 4x", "unknown unit"),
            ("pwrite 0 4k", "-S BYTE"),
            ("pwrite -S 256 0 4k", "0 to 255"),
            ("pread 0 4k more", "'more'"),
            ("dread 18446744073709551615 1", "2^64"),
            ("frobnicate", "no command"),
            ("sleep -1", "seconds"),
            ("sleep nan", "seconds"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.message.contains(part), "{line}: {}", error.message);
            assert_eq!(error.kind, "usage");
        }
    }

    proptest! {
        #[test]
        fn no_line_is_a_panic(line in "\\PC*") {
            let _ = parse(&line);
        }

        #[test]
        fn no_words_are_a_panic(words in prop::collection::vec("(pin|dread|fail|dadd|-[wotvS]|[0-9]{1,22}[kmgx]?|0x[0-9a-f]*)", 0..6)) {
            let _ = parse(&words.join(" "));
        }
    }
}
