//! The d-commands: what the device does.

use std::ops::Range;

use pageferry::{Cache, Error, Pin, PinMode, View};

use super::command::Reply;
use super::data;
use super::session::{Done, Session, len, read_reply};
use crate::failure::Failure;

impl Session {
    pub(super) fn dread(&self, verbose: bool, range: &Range<u64>) -> Done {
        let read = |view: &View<'_>, _: &Cache| data::read(view, range, verbose);
        let mut bytes = self.with_view(range, false, read)?;
        let inside = self.inside(range)?;
        if let Some(bytes) = &mut bytes {
            bytes.truncate(inside as usize);
        }
        let mut reply = read_reply("device read", range.start, inside, bytes);
        let rest = rest(range, inside, "read as zeros");
        reply.lines.iter_mut().for_each(|line| *line += &rest);
        Ok(reply)
    }

    pub(super) fn dwrite(&self, byte: u8, range: &Range<u64>) -> Done {
        self.with_view(range, true, |view, _| data::fill(view, range, byte))?;
        let inside = self.inside(range)?;
        let text = format!("device wrote {inside} bytes at offset {}", range.start);
        Ok(Reply::line(text + &rest(range, inside, DROPPED)).with("bytes", inside))
    }

    pub(super) fn dadd(&self, n: u32, range: &Range<u64>) -> Done {
        self.with_view(range, true, |view, cache| data::add(cache, view, range, n))?;
        let inside = self.inside(range)?;
        let text = format!("device added {n} to {} u32 at offset {}", inside / 4, range.start);
        Ok(Reply::line(text + &rest(range, inside, DROPPED)).with("bytes", inside))
    }

    /// The digest is of all that the device sees, the zeros past the end of the file included.
    pub(super) fn dsum(&self, range: &Range<u64>) -> Done {
        let sum = self.with_view(range, false, |view, cache| data::sha256(cache, view, range))?;
        let text = format!("{sum}  bytes {}..{}", range.start, range.end);
        let rest = rest(range, self.inside(range)?, "read as zeros");
        Ok(Reply::line(text + &rest).with("sha256", sum).with("bytes", len(range)))
    }

    /// The failure of an access inside a pin: that the file ends before is true no more if it has grown since.
    fn cut(&self, pin: &Pin, error: Error) -> Failure {
        match (&error, self.file.len()) {
            (Error::PastEof { range, .. }, Ok(now)) if range.start < now => Failure::told(
                &error,
                format!(
                    "bytes {}..{} were cut off from the pin of {}..{} when the file was truncated, and stay so; \
                     release it and pin anew",
                    range.start,
                    range.end,
                    pin.range().start,
                    pin.range().end
                ),
            ),
            _ => error.into(),
        }
    }

    /// How much of a range lies inside the file.
    fn inside(&self, range: &Range<u64>) -> Result<u64, Failure> {
        Ok(range.end.min(self.file.len()?).saturating_sub(range.start))
    }

    /// A view for the range: a pin's that covers it, or one that faults.
    fn with_view<T>(
        &self,
        range: &Range<u64>,
        writes: bool,
        work: impl FnOnce(&View<'_>, &Cache) -> Result<T, Error>,
    ) -> Result<T, Failure> {
        let covers = |p: &&Pin| p.range().start <= range.start && range.end <= p.range().end;
        let covering: Vec<&Pin> = self.pins.values().filter(covers).collect();
        let writing = covering.iter().find(|p| p.mode() != PinMode::Read);
        if let Some(pin) = writing.or(covering.first()) {
            return work(&pin.view()?, &self.cache).map_err(|e| self.cut(pin, e));
        }
        // Before anything is moved: the range may be longer than anybody would wait for.
        let file_bytes = self.file.len()?;
        if !range.is_empty() && range.end > file_bytes.next_multiple_of(4096) {
            return Err(Error::PastEof { range: range.clone(), file_bytes }.into());
        }
        let view = self.file.view(writes)?;
        let result = work(&view, &self.cache);
        let closed = view.close();
        let value = result?;
        closed?;
        Ok(value)
    }
}

/// What becomes of stores past the end of the file.
const DROPPED: &str = "are dropped, but for what the file grows over before the release";

/// Says what became of the bytes of the last page that are not the file's.
fn rest(range: &Range<u64>, inside: u64, what: &str) -> String {
    match len(range) - inside {
        0 => String::new(),
        rest => format!("; the last {rest} of the range are past the end of the file and {what}"),
    }
}
