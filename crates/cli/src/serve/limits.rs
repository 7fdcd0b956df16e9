//! The file that says what clients may hold: TOML, with the names of [`Limits`]. What it does not name has its
//! default.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use pageferry::serve::Limits;
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use crate::size;

/// Reads the limits.
pub(super) fn read(path: &Path) -> anyhow::Result<Limits> {
    let name = || format!("the limits in {}", path.display());
    let text = std::fs::read_to_string(path).with_context(name)?;
    parse(&text).with_context(name)
}

fn parse(text: &str) -> anyhow::Result<Limits> {
    let file: File = toml::from_str(text).map_err(|error| {
        // Its own text draws the line over several lines, which is nothing for a log.
        let line = error.span().map(|span| 1 + text[..span.start].matches('\n').count());
        let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        anyhow::anyhow!("{place}{}", error.message())
    })?;
    let mut limits = Limits::default();
    let set = |limit: &mut usize, count: Option<Count>| {
        if let Some(Count(count)) = count {
            *limit = count;
        }
    };
    set(&mut limits.sessions, file.sessions);
    set(&mut limits.sessions_per_user, file.sessions_per_user);
    set(&mut limits.files, file.files);
    set(&mut limits.pins, file.pins);
    set(&mut limits.maps, file.maps);
    set(&mut limits.kept_files, file.kept_files);
    if let Some(Requests(requests)) = file.requests {
        limits.requests = requests;
    }
    if let Some(Bytes(bytes)) = file.pinned_bytes {
        limits.pinned_bytes = bytes;
    }
    if let Some(Bytes(bytes)) = file.pinned_bytes_per_user {
        limits.pinned_bytes_per_user = bytes;
    }
    if let Some(Seconds(time)) = file.reply_time {
        limits.reply_time = time;
    }
    if let Some(served) = file.served_file_systems {
        limits.served_file_systems = served;
    }
    Ok(limits)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    sessions: Option<Count>,
    sessions_per_user: Option<Count>,
    files: Option<Count>,
    pins: Option<Count>,
    maps: Option<Count>,
    pinned_bytes: Option<Bytes>,
    pinned_bytes_per_user: Option<Bytes>,
    requests: Option<Requests>,
    kept_files: Option<Count>,
    reply_time: Option<Seconds>,
    served_file_systems: Option<bool>,
}

#[derive(serde::Deserialize)]
struct Count(usize);

/// Of a session, which needs one that is never kept waiting.
struct Requests(usize);

impl<'de> Deserialize<'de> for Requests {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Requests, D::Error> {
        match usize::deserialize(from)? {
            few @ (0 | 1) => {
                let few = Unexpected::Unsigned(few as u64);
                Err(D::Error::invalid_value(few, &"a number of requests from 2"))
            }
            requests => Ok(Requests(requests)),
        }
    }
}

/// A number, or a text as on the command line.
struct Bytes(u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        from.deserialize_any(BytesVisitor).map(Bytes)
    }
}

struct BytesVisitor;

impl Visitor<'_> for BytesVisitor {
    type Value = u64;

    fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("a number of bytes, or a text like \"4g\"")
    }

    fn visit_i64<E: Error>(self, bytes: i64) -> Result<u64, E> {
        let wrong = || E::invalid_value(Unexpected::Signed(bytes), &self);
        u64::try_from(bytes).map_err(|_| wrong())
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<u64, E> {
        Ok(bytes)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        size::parse(text).map_err(E::custom)
    }
}

/// More than nothing: no answer is read in no time.
struct Seconds(Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Seconds, D::Error> {
        let seconds = f64::deserialize(from)?;
        match (0.001..=1e6).contains(&seconds) {
            true => Ok(Seconds(Duration::from_secs_f64(seconds))),
            false => Err(D::Error::invalid_value(
                Unexpected::Float(seconds),
                &"seconds, from 0.001 to 1000000",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_can_be_set() {
        let limits = parse(
            "sessions = 1\nsessions_per_user = 2\nfiles = 3\npins = 4\nmaps = 12\npinned_bytes = \"5k\"\n\
             pinned_bytes_per_user = 6\nrequests = 7\nkept_files = 8\nreply_time = 9\n\
             served_file_systems = true",
        );
        let mut all = Limits::default();
        (all.sessions, all.sessions_per_user, all.files, all.pins) = (1, 2, 3, 4);
        all.maps = 12;
        (all.pinned_bytes, all.pinned_bytes_per_user) = (5 << 10, 6);
        (all.requests, all.kept_files) = (7, 8);
        (all.reply_time, all.served_file_systems) = (Duration::from_secs(9), true);
        assert_eq!(limits.unwrap(), all);
        assert_eq!(parse("").unwrap(), Limits::default());
        assert_eq!(parse("reply_time = 0.5").unwrap().reply_time, Duration::from_millis(500));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("files = 1\npinz = 3", "line 2: unknown field `pinz`"),
            ("pinned_bytes = \"4x\"", "unknown unit 'x'"),
            ("pinned_bytes = -1", "-1"),
            ("files = \"many\"", "\"many\""),
            ("files = -1", "-1"),
            ("requests = 1", "from 2"),
            ("reply_time = 0", "from 0.001"),
            ("reply_time = nan", "from 0.001"),
            ("files = 1\nfiles = 2", "duplicate key"),
            ("files", "line 1"),
        ] {
            let said = crate::failure::message(&parse(text).expect_err(text));
            assert!(said.contains(part) && !said.contains('\n'), "{text}: {said}");
        }
    }
}
