//! Another process, which does things to files and says how long they took.
//!
//! It is our own program again, started before anything is measured and told line by line what to do, so
//! that neither its start nor the talking is in a figure. It has a file open only for what it is told to
//! do to it: whoever has a file open stands in the way of leases. It ends when nobody talks to it any
//! more, which is also when we die.
//!
//! The files have plain names, as finding one through `/proc/PID/fd` would take as long as all else that
//! an open does. So that nothing is left behind however we end, they are in a directory of the other
//! process, which it removes at its own end.
//!
//! ```text
//! {"directory":"/tmp/.tmpx1","ok":true}
//! read 200 0 7 /tmp/.tmpx1/twin      what, how often, at which byte, the page's bytes there, the file
//! {"nanoseconds":120034,"ok":true}
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::PAGE;
use crate::failure::Failure;
use crate::output::line;

/// What is done to a file, and timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// Opening it for reading, and closing it.
    Open,
    /// Reading a page. It was opened before, and is closed after, which is not timed.
    Read,
    /// Writing a page, in the same way.
    Write,
    /// Opening it, reading a page, closing it.
    Visit,
}

const DEEDS: [(&str, Deed); 4] =
    [("open", Deed::Open), ("read", Deed::Read), ("write", Deed::Write), ("visit", Deed::Visit)];

impl Deed {
    pub(super) fn name(self) -> &'static str {
        DEEDS.iter().find(|(_, deed)| *deed == self).map_or("?", |(name, _)| name)
    }
}

/// What it is told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order<'p> {
    pub(super) deed: Deed,
    pub(super) times: u32,
    /// Where the page is.
    pub(super) at: u64,
    /// All bytes of the page: as they must be read, or are written.
    pub(super) byte: u8,
    pub(super) path: &'p Path,
}

impl Order<'_> {
    fn line(&self) -> String {
        let Order { deed, times, at, byte, path } = self;
        format!("{} {times} {at} {byte} {}\n", deed.name(), path.display())
    }

    fn parse(line: &str) -> Option<Order<'_>> {
        let mut words = line.splitn(5, ' ');
        let mut word = || words.next();
        let name = word()?;
        Some(Order {
            deed: DEEDS.iter().find(|(n, _)| *n == name)?.1,
            times: word()?.parse().ok()?,
            at: word()?.parse().ok()?,
            byte: word()?.parse().ok()?,
            path: Path::new(word()?),
        })
    }

    /// Does it: how long all of it took.
    fn obey(&self) -> anyhow::Result<Duration> {
        let named = || format!("the outsider: {} of {}", self.deed.name(), self.path.display());
        self.take_time().with_context(named)
    }

    fn take_time(&self) -> anyhow::Result<Duration> {
        // Dropped before anything is answered.
        let open = match self.deed {
            Deed::Open | Deed::Visit => None,
            Deed::Read => Some(File::open(self.path)?),
            Deed::Write => Some(OpenOptions::new().write(true).open(self.path)?),
        };
        let mut page = [self.byte; PAGE as usize];
        let started = Instant::now();
        for _ in 0..self.times {
            match (&open, self.deed) {
                (Some(file), Deed::Write) => file.write_all_at(&page, self.at)?,
                (Some(file), _) => self.read(file, &mut page)?,
                (None, Deed::Visit) => self.read(&File::open(self.path)?, &mut page)?,
                (None, _) => drop(File::open(self.path)?),
            }
        }
        let took = started.elapsed();
        let odd = page.iter().find(|b| **b != self.byte);
        ensure!(odd.is_none(), "{} was read where {} was", odd.unwrap_or(&0), self.byte);
        Ok(took)
    }

    /// The page's ends are looked at each time, all of it after the last.
    fn read(&self, file: &File, page: &mut [u8; PAGE as usize]) -> anyhow::Result<()> {
        file.read_exact_at(page, self.at)?;
        let ends = [page[0], page[page.len() - 1]];
        ensure!(ends == [self.byte; 2], "{ends:?} were read where {} was", self.byte);
        Ok(())
    }
}

/// What the other process does until its standard input ends.
pub(crate) fn serve() -> anyhow::Result<bool> {
    let home = tempfile::tempdir();
    let home =
        home.with_context(|| format!("making a directory in {}", std::env::temp_dir().display()))?;
    line(json!({ "ok": true, "directory": home.path() }).to_string())?;
    for order in io::stdin().lock().lines() {
        let order = order.context("reading what to do")?;
        let done = match Order::parse(&order) {
            Some(order) => order.obey(),
            None => Err(anyhow::anyhow!("the outsider does not understand '{order}'")),
        };
        let answer = match done {
            Ok(took) => json!({ "ok": true, "nanoseconds": took.as_nanos() as u64 }),
            Err(error) => Value::Object(Failure::of(&error).fields()),
        };
        line(answer.to_string())?;
    }
    Ok(true)
}

/// The other process.
pub(super) struct Outsider {
    child: Child,
    /// Taken when it shall end.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    directory: PathBuf,
}

impl Outsider {
    /// To be called before a cache has opened anything: what a child is started with, it has open for a
    /// moment.
    pub(super) fn start() -> anyhow::Result<Outsider> {
        let program = std::env::current_exe().context("finding our own program")?;
        let started = Command::new(&program)
            .arg("outsider")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // An interrupt from the terminal is for us; it has a directory to remove.
            .process_group(0)
            .spawn();
        let mut child = started.with_context(|| format!("starting {}", program.display()))?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().context("the outsider has no output")?;
        let (answers, directory) = (BufReader::new(answers), PathBuf::new());
        let mut outsider = Outsider { child, orders, answers, directory };
        let ready = outsider.answer()?;
        let directory = ready["directory"].as_str().context("the outsider names no directory")?;
        outsider.directory = directory.into();
        Ok(outsider)
    }

    /// A place for files that both know, which goes when the outsider does.
    pub(super) fn place(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Has something done: how long it took.
    pub(super) fn does(&mut self, order: &Order<'_>) -> anyhow::Result<Duration> {
        if let Some(orders) = &mut self.orders {
            // Where nobody reads it any more, nobody answers either, and that is told.
            let _ = orders.write_all(order.line().as_bytes());
        }
        let answer = self.answer()?;
        match answer["nanoseconds"].as_u64() {
            Some(took) => Ok(Duration::from_nanos(took)),
            None => Err(failure(&answer["error"])),
        }
    }

    fn answer(&mut self) -> anyhow::Result<Value> {
        let mut answer = String::new();
        if self.answers.read_line(&mut answer).context("listening to the outsider")? == 0 {
            self.orders = None;
            let status = self.child.wait().context("waiting for the outsider")?;
            bail!("the outsider has ended early: {status}");
        }
        serde_json::from_str(&answer)
            .with_context(|| format!("the outsider answered '{}'", answer.trim_end()))
    }
}

/// What went wrong there, as if it had here.
fn failure(error: &Value) -> anyhow::Error {
    let message = error["message"].as_str().unwrap_or("the outsider failed").to_owned();
    let errno = error["errno"].as_i64().and_then(|e| i32::try_from(e).ok());
    match errno.filter(|_| error["kind"] != "usage") {
        Some(errno) => anyhow::Error::from(io::Error::from_raw_os_error(errno)).context(message),
        None => anyhow::Error::msg(message),
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        self.orders = None;
        // It ends as its input has: there is nothing to be done if not.
        let _ = self.child.wait();
        // It has removed its directory, unless somebody killed it.
        if self.directory.is_dir() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// A file as both processes know it, and what its page at `at` holds.
pub(super) struct Site {
    pub(super) path: PathBuf,
    pub(super) at: u64,
    pub(super) byte: u8,
}

impl Site {
    pub(super) fn order(&self, deed: Deed, times: u32) -> Order<'_> {
        Order { deed, times, at: self.at, byte: self.byte, path: &self.path }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_what_they_were() {
        for (_, deed) in DEEDS {
            let order = Order { deed, times: 9, at: 1 << 40, byte: 255, path: Path::new("/a b") };
            assert_eq!(Order::parse(order.line().trim_end()), Some(order.clone()));
        }
        for bad in ["", "read", "read 1 2 3", "read 1 2 256 /a", "eat 1 2 3 /a"] {
            assert_eq!(Order::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn deeds_are_checked() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let order = |deed, byte| Order { deed, times: 2, at: PAGE, byte, path: file.path() };
        order(Deed::Write, 7).obey().unwrap();
        for deed in [Deed::Read, Deed::Visit, Deed::Open] {
            order(deed, 7).obey().unwrap();
        }
        let error = format!("{:#}", order(Deed::Read, 8).obey().unwrap_err());
        assert!(error.contains("the outsider: read of") && error.contains("8 was"), "{error}");
        assert!(std::fs::read(file.path()).unwrap()[PAGE as usize..] == [7; PAGE as usize]);
    }
}
