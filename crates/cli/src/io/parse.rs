//! From a line to a command.

use super::command::{Command, Fill, Look};
use super::words::{Parsed, Words, number};
use crate::failure::Failure;
use crate::size;

/// What xfs_io writes if not told otherwise.
const PWRITE_FILL: u8 = 0xcd;
const MWRITE_FILL: u8 = b'X';

/// The options of a command, as getopt has them; `None`: there is no such command.
fn options(name: &str) -> Option<&'static str> {
    Some(match name {
        "pin" => "wot:",
        "unpin" | "fzero" | "falloc" => "k",
        "dread" => "v",
        "mread" => "vf",
        "pread" => "vqb:",
        "dwrite" | "mwrite" => "S:",
        "pwrite" => "S:qb:",
        "mmap" => "rw",
        "msync" => "sa",
        "dsum" | "dadd" | "munmap" | "fsync" | "truncate" | "fpunch" | "fcollapse" | "finsert"
        | "prefetch" | "evict" | "flush" | "where" | "stats" | "fail" | "sleep" | "help" | "?" => {
            ""
        }
        _ => return None,
    })
}

/// Parses one line, which is not empty.
pub(super) fn parse(line: &str) -> Parsed<Command> {
    if let Some(command) = line.strip_prefix('!') {
        return Ok(Command::Shell { command: command.trim().to_owned() });
    }
    let mut words = line.split_whitespace();
    let name = words.next().unwrap_or_default();
    let unknown = || Failure::usage(format!("there is no command '{name}'; try help"));
    let mut words = Words::new(words, options(name).ok_or_else(unknown)?)?;
    let command = command(name, &mut words)?;
    words.end()?;
    Ok(command)
}

fn command(name: &str, w: &mut Words<'_>) -> Parsed<Command> {
    Ok(match name {
        "pin" => Command::Pin {
            write: w.flag('w'),
            overwrite: w.flag('o'),
            timeout: w.value('t').map(size::seconds).transpose().map_err(Failure::usage)?,
            range: w.range()?,
        },
        "unpin" => Command::Unpin { keep: w.flag('k'), id: w.next().map(number).transpose()? },
        "dread" => Command::DRead { verbose: w.flag('v'), range: w.range()? },
        "dwrite" => {
            let byte =
                w.pattern()?.ok_or_else(|| Failure::usage("-S BYTE is missing; try help"))?;
            Command::DWrite { byte, range: w.range()? }
        }
        "dsum" => Command::DSum { range: w.range()? },
        "dadd" => Command::DAdd { n: number(w.word("N")?)?, range: w.range()? },
        "mmap" | "mread" | "mwrite" | "munmap" | "msync" => return mapping(name, w),
        "pread" => {
            let look = Look { verbose: w.flag('v'), quiet: w.flag('q'), buffer: w.buffer()? };
            Command::PRead { look, range: w.range()? }
        }
        "pwrite" => {
            let byte = w.pattern()?.unwrap_or(PWRITE_FILL);
            let fill = Fill { byte, quiet: w.flag('q'), buffer: w.buffer()? };
            Command::PWrite { fill, range: w.range()? }
        }
        "fsync" => Command::Fsync,
        "truncate" => Command::Truncate { bytes: w.size("LEN")? },
        "fpunch" => Command::Punch { range: w.range()? },
        "fzero" => Command::Zero { keep_size: w.flag('k'), range: w.range()? },
        "falloc" => Command::Allocate { keep_size: w.flag('k'), range: w.range()? },
        "fcollapse" => Command::Collapse { range: w.range()? },
        "finsert" => Command::Insert { range: w.range()? },
        "prefetch" => Command::Prefetch { range: w.range()? },
        "evict" => Command::Evict { range: w.range()? },
        "flush" => Command::Flush { range: w.optional_range()?.unwrap_or(0..u64::MAX) },
        "where" => Command::Where { range: w.range()? },
        "stats" => Command::Stats,
        "fail" => Command::Fail {
            point: w.word("POINT")?.to_owned(),
            count: w.next().map(number).transpose()?.unwrap_or(1),
        },
        "sleep" => {
            Command::Sleep { seconds: size::seconds(w.word("SECONDS")?).map_err(Failure::usage)? }
        }
        _ => Command::Help,
    })
}

fn mapping(name: &str, w: &mut Words<'_>) -> Parsed<Command> {
    Ok(match name {
        "mmap" => {
            // As in xfs_io: neither is both.
            let read_only = w.flag('r') && !w.flag('w');
            Command::Mmap { read_only, range: w.range()? }
        }
        "mread" => {
            let verbose = w.flag('v') || w.flag('f');
            Command::MRead { verbose, range: w.optional_range()? }
        }
        "mwrite" => {
            let byte = w.pattern()?.unwrap_or(MWRITE_FILL);
            Command::MWrite { byte, range: w.optional_range()? }
        }
        "msync" if w.flag('s') && w.flag('a') => {
            return Err(Failure::usage("-s waits for storage and -a does not: choose one"));
        }
        "msync" => Command::Msync { waits: !w.flag('a'), range: w.optional_range()? },
        _ => Command::Munmap,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pwrite(byte: u8, quiet: bool, buffer: Option<u64>) -> Command {
        Command::PWrite { fill: Fill { byte, quiet, buffer }, range: 0..4096 }
    }

    #[test]
    fn lines_as_xfs_io_takes_them() {
        for line in ["pwrite 0 4k", "pwrite -S 0xcd 0 4k", "pwrite 0 -S 205 4k", "pwrite -- 0 4k"] {
            assert_eq!(parse(line), Ok(pwrite(0xcd, false, None)), "{line}");
        }
        for line in ["pwrite -q -b 1k -S1 0 4k", "pwrite 0 4k -qb1k -S 1"] {
            assert_eq!(parse(line), Ok(pwrite(1, true, Some(1024))), "{line}");
        }
        let look = Look { verbose: true, quiet: true, buffer: None };
        assert_eq!(parse("pread -vq 0 1"), Ok(Command::PRead { look, range: 0..1 }));
        let map = |read_only| Ok(Command::Mmap { read_only, range: 0..4096 });
        for (line, read_only) in
            [("mmap -rw 0 4k", false), ("mmap 0 4k", false), ("mmap -r 0 4k", true)]
        {
            assert_eq!(parse(line), map(read_only), "{line}");
        }
        let whole = |waits| Ok(Command::Msync { waits, range: None });
        assert_eq!((parse("msync"), parse("msync -a")), (whole(true), whole(false)));
        assert_eq!(parse("msync -s 0 1"), Ok(Command::Msync { waits: true, range: Some(0..1) }));
        assert_eq!(parse("mwrite"), Ok(Command::MWrite { byte: b'X', range: None }));
    }

    #[test]
    fn lines_of_our_own() {
        let dread = Ok(Command::DRead { verbose: true, range: 0..4096 });
        assert_eq!((parse("dread -v 0 4k"), parse("dread 0 4k -v")), (dread.clone(), dread));
        let pin =
            Command::Pin { write: true, overwrite: false, timeout: Some(0.5), range: 0..1 << 20 };
        assert_eq!(parse("  pin -w -t 0.5 0 1m "), Ok(pin));
        assert_eq!(parse("unpin -k 3"), Ok(Command::Unpin { keep: true, id: Some(3) }));
        assert_eq!(parse("!echo  a"), Ok(Command::Shell { command: "echo  a".into() }));
        assert_eq!(parse("flush"), Ok(Command::Flush { range: 0..u64::MAX }));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("pin 0", "LEN is missing"),
            ("pin 0 4x", "unknown unit"),
            ("pin 0 4b", "block"),
            ("pin -t 0 4k", "LEN is missing"),
            ("pin 0 4k -t", "value of -t"),
            ("dwrite 0 4k", "-S BYTE"),
            ("pwrite -S 256 0 4k", "0 to 255"),
            ("pwrite -b 0 0 4k", "-b"),
            ("pread 0 4k more", "'more'"),
            ("dread -q 0 4k", "unknown option '-q'"),
            ("dread --verbose 0 4k", "unknown option '--verbose'"),
            ("dread -: 0 4k", "unknown option"),
            ("msync -sa", "choose"),
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
        fn no_words_are_a_panic(words in prop::collection::vec("(pin|dread|fail|dadd|pwrite|-[wotvSqb:]{1,2}|[0-9]{1,22}[kmgx]?|0x[0-9a-f]*)", 0..6)) {
            let _ = parse(&words.join(" "));
        }
    }
}
