//! Runs a sequence, generated or given, to its end or to the first difference.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use anyhow::Context;
use tempfile::TempDir;

use crate::difference::{Difference, Step, Trouble};
use crate::generate::Generator;
use crate::op::Op;
use crate::sequence::Sequence;
use crate::settings::Settings;
use crate::watchdog::Watchdog;
use crate::world::{Compared, Done, Place, World};

/// Where the files go. Each run makes them anew.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// For a directory of our own with the file, the twin, or both.
    pub(crate) dir: PathBuf,
    /// The file itself, if it has a given name.
    pub(crate) file: Option<PathBuf>,
    /// For the twin, if it is to lie elsewhere.
    pub(crate) twin_dir: Option<PathBuf>,
}

impl Site {
    fn place(&self) -> anyhow::Result<(Place, Vec<TempDir>)> {
        let make = |dir: &PathBuf| {
            tempfile::Builder::new()
                .prefix("pageferry-fsx-")
                .tempdir_in(dir)
                .with_context(|| format!("making a directory in {}", dir.display()))
        };
        let dir = make(&self.dir)?;
        let twin = self.twin_dir.as_ref().map(make).transpose()?;
        let place = Place {
            file: self.file.clone().unwrap_or_else(|| dir.path().join("file")),
            twin: twin.as_ref().unwrap_or(&dir).path().join("twin"),
        };
        Ok((place, [dir].into_iter().chain(twin).collect()))
    }
}

/// What a run did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) ops: Vec<Op>,
    /// Of each kind: done, refused, skipped.
    pub(crate) kinds: BTreeMap<String, [u64; 3]>,
    pub(crate) compared: Compared,
    pub(crate) counters: BTreeMap<String, u64>,
    pub(crate) failure: Option<Difference>,
}

impl Report {
    /// The last operations that touched an offset (or any, if the difference has none), with their
    /// steps, the failing one included.
    pub(crate) fn history(&self, offset: Option<u64>, last: usize) -> Vec<(usize, &Op)> {
        let touches = |op: &Op| match (offset, op.touched()) {
            (Some(offset), Some(range)) => range.contains(&offset),
            _ => true,
        };
        let end = self.ops.len();
        let all = self.ops.iter().enumerate().filter(|(n, op)| *n + 1 == end || touches(op));
        let mut recent: Vec<_> = all.rev().take(last).collect();
        recent.reverse();
        recent
    }
}

/// Where operations come from.
pub(crate) enum Source<'a> {
    Generated(Generator, u64),
    Given(&'a [Op]),
}

impl Source<'_> {
    fn next(&mut self, step: usize, world: &World) -> Option<Op> {
        match self {
            Source::Generated(generator, ops) => {
                ((step as u64) < *ops).then(|| generator.next(world))
            }
            Source::Given(ops) => ops.get(step).cloned(),
        }
    }
}

/// Runs. `progress` is told the number of each step.
///
/// # Errors
/// What keeps the tool itself from going on; a difference is no error but part of the report.
pub(crate) fn run(
    settings: &Settings,
    site: &Site,
    mut source: Source<'_>,
    watchdog: &Watchdog,
    progress: &dyn Fn(u64),
) -> anyhow::Result<Report> {
    let (place, _dirs) = site.place()?;
    let mut world = World::new(settings, &place)?;
    let mut report = Report::default();
    watchdog.begin(settings);
    let result = loop {
        let step = report.ops.len();
        let Some(op) = source.next(step, &world) else {
            break guarded(|| world.end());
        };
        watchdog.watch(&op);
        report.ops.push(op.clone());
        let done = match guarded(|| world.step(&op)) {
            Ok(done) => done,
            Err(trouble) => break Err(trouble),
        };
        count(&mut report, &op, done);
        progress(step as u64 + 1);
    };
    watchdog.rest();
    report.compared = world.compared().clone();
    report.counters = world.counters();
    match result {
        Ok(()) => {}
        Err(Trouble::Difference(difference)) => report.failure = Some(*difference),
        Err(Trouble::Broken(error)) => {
            let last = report.ops.last().map_or_else(String::new, Op::to_string);
            return Err(error.context(format!("step {}: {last}", report.ops.len())));
        }
    }
    if report.failure.as_ref().is_some_and(|f| f.path == "panic") {
        // What panicked may hold its locks.
        std::mem::forget(world);
    }
    Ok(report)
}

fn count(report: &mut Report, op: &Op, done: Done) {
    let counts = report.kinds.entry(op.kind()).or_default();
    match done {
        Done::Did => counts[0] += 1,
        Done::Refused => counts[1] += 1,
        Done::Skipped => counts[2] += 1,
    }
}

/// A panic is a difference, too.
fn guarded<T>(step: impl FnOnce() -> Step<T>) -> Step<T> {
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Difference::new("panic", text.unwrap_or("of something without words")).into())
    })
}

impl Sequence {
    /// Runs it; the failing step is its last, and what follows the end of a sequence (comparing
    /// everything) counts as one.
    pub(crate) fn run(&self, site: &Site, watchdog: &Watchdog) -> anyhow::Result<Report> {
        run(&self.settings, site, Source::Given(&self.ops), watchdog, &|_| {})
    }

    /// Without what never ran.
    pub(crate) fn upto(&self, report: &Report) -> Sequence {
        Sequence { settings: self.settings.clone(), ops: report.ops.clone() }
    }
}
