//! The words of a line: options, which may stand anywhere as in xfs_io, and operands.

use std::ops::Range;

use crate::failure::Failure;
use crate::size;

pub(super) type Parsed<T> = Result<T, Failure>;

pub(super) struct Words<'a> {
    options: Vec<(char, &'a str)>,
    operands: std::vec::IntoIter<&'a str>,
}

/// Whether an option takes a value, by a specification as getopt has it; `None`: there is no such.
fn takes_value(spec: &str, letter: char) -> Option<bool> {
    let at = spec.find(letter).filter(|_| letter != ':')?;
    Some(spec[at..].chars().nth(1) == Some(':'))
}

impl<'a> Words<'a> {
    pub(super) fn new(words: impl Iterator<Item = &'a str>, spec: &str) -> Parsed<Words<'a>> {
        let (mut options, mut operands) = (Vec::new(), Vec::new());
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            if word == "--" {
                operands.extend(words);
                break;
            }
            // What looks like a negative number is a wrong operand, not an option.
            let letters = word.strip_prefix('-').filter(|l| !l.is_empty());
            let Some(letters) = letters.filter(|l| !l.starts_with(|c: char| c.is_ascii_digit()))
            else {
                operands.push(word);
                continue;
            };
            for (at, letter) in letters.char_indices() {
                let unknown = || Failure::usage(format!("unknown option '{word}'; try help"));
                let rest = &letters[at + letter.len_utf8()..];
                if !takes_value(spec, letter).ok_or_else(unknown)? {
                    options.push((letter, ""));
                    continue;
                }
                let value = if rest.is_empty() { words.next() } else { Some(rest) };
                let missing = || Failure::usage(format!("the value of -{letter} is missing"));
                options.push((letter, value.ok_or_else(missing)?));
                break;
            }
        }
        Ok(Words { options, operands: operands.into_iter() })
    }

    pub(super) fn flag(&self, letter: char) -> bool {
        self.value(letter).is_some()
    }

    /// An option's value; the last one counts.
    pub(super) fn value(&self, letter: char) -> Option<&'a str> {
        self.options.iter().rev().find(|(l, _)| *l == letter).map(|(_, value)| *value)
    }

    pub(super) fn next(&mut self) -> Option<&'a str> {
        self.operands.next()
    }

    pub(super) fn word(&mut self, what: &str) -> Parsed<&'a str> {
        self.next().ok_or_else(|| Failure::usage(format!("{what} is missing; try help")))
    }

    pub(super) fn size(&mut self, what: &str) -> Parsed<u64> {
        let word = self.word(what)?;
        size::parse(word).map_err(|e| Failure::usage(format!("{what}: {e}")))
    }

    pub(super) fn range(&mut self) -> Parsed<Range<u64>> {
        let (off, len) = (self.size("OFF")?, self.size("LEN")?);
        let end = off.checked_add(len);
        Ok(off..end.ok_or_else(|| Failure::usage("OFF + LEN is more than 2^64"))?)
    }

    /// A range, or nothing at all.
    pub(super) fn optional_range(&mut self) -> Parsed<Option<Range<u64>>> {
        if self.operands.as_slice().is_empty() { Ok(None) } else { self.range().map(Some) }
    }

    /// The byte of -S.
    pub(super) fn pattern(&self) -> Parsed<Option<u8>> {
        self.value('S').map(|w| size::byte(w).map_err(Failure::usage)).transpose()
    }

    /// The size of -b.
    pub(super) fn buffer(&self) -> Parsed<Option<u64>> {
        let parse = |word| match size::parse(word) {
            Ok(0) => Err(Failure::usage("-b: a buffer of no bytes moves nothing")),
            other => other.map_err(|e| Failure::usage(format!("-b: {e}"))),
        };
        self.value('b').map(parse).transpose()
    }

    pub(super) fn end(mut self) -> Parsed<()> {
        match self.next() {
            None => Ok(()),
            Some(more) => Err(Failure::usage(format!("what is '{more}'? try help"))),
        }
    }
}

pub(super) fn number(word: &str) -> Parsed<u32> {
    let value = size::parse(word).ok().and_then(|n| u32::try_from(n).ok());
    value.ok_or_else(|| Failure::usage(format!("'{word}' is not a number from 0 to 2^32-1")))
}
