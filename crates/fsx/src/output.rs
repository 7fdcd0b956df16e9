//! What is printed: lines for people, or one JSON object.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::difference::Difference;
use crate::run::Report;
use crate::shrink::Shrunk;
use crate::world::Compared;

/// Operations shown of those that touched the offset.
const HISTORY: usize = 20;

/// Prints a line. Whoever closed the other end does not want it; the exit status says the rest.
macro_rules! say {
    ($($arg:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}

/// A step hangs: says which, and writes what led there.
pub(crate) fn hangs(path: &Path, lines: &[String]) {
    let op = lines.last().map_or("", String::as_str);
    eprintln!("pageferry-fsx: HANG in step {}: {op}", lines.len().saturating_sub(1));
    match std::fs::write(path, lines.join("\n") + "\n") {
        Ok(()) => eprintln!("replay with: pageferry-fsx --replay {}", path.display()),
        Err(error) => eprintln!("pageferry-fsx: writing {}: {error}", path.display()),
    }
}

pub(crate) struct Output {
    json: bool,
    begun: Instant,
    seeds: Vec<Option<u64>>,
    ops: usize,
    kinds: BTreeMap<String, [u64; 3]>,
    compared: Compared,
    counters: BTreeMap<String, u64>,
    failure: Value,
}

impl Output {
    pub(crate) fn new(json: bool) -> Output {
        Output {
            json,
            begun: Instant::now(),
            seeds: Vec::new(),
            ops: 0,
            kinds: BTreeMap::new(),
            compared: Compared::new(),
            counters: BTreeMap::new(),
            failure: Value::Null,
        }
    }

    /// Shows itself on a terminal only.
    pub(crate) fn bar(&self, seed: u64, ops: u64) -> ProgressBar {
        let bar = if self.json { ProgressBar::hidden() } else { ProgressBar::new(ops) };
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.with_message(format!("seed {seed}"))
    }

    pub(crate) fn count(&mut self, seed: Option<u64>, report: &Report) {
        self.seeds.push(seed);
        self.ops += report.ops.len();
        for (kind, counts) in &report.kinds {
            let sum = self.kinds.entry(kind.clone()).or_default();
            sum.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        }
        for (path, bytes) in &report.compared {
            *self.compared.entry(path).or_default() += bytes;
        }
        for (name, n) in &report.counters {
            *self.counters.entry(name.clone()).or_default() += n;
        }
    }

    pub(crate) fn failed(&mut self, seed: Option<u64>, report: &Report, failure: &Difference) {
        let step = report.ops.len();
        let op = report.ops.last().map_or_else(String::new, ToString::to_string);
        let history: Vec<String> = report
            .history(failure.offset(), HISTORY)
            .into_iter()
            .map(|(n, op)| format!("{:6} {op}", n + 1))
            .collect();
        self.failure = json!({
            "seed": seed, "step": step, "op": op, "path": failure.path,
            "offset": failure.offset(), "what": failure.to_string(), "history": history,
        });
        if !self.json {
            let seed = seed.map_or(String::new(), |seed| format!("seed {seed}, "));
            say!("DIFFERENCE in {seed}step {step}: {op}\n{failure}");
            let which = if failure.offset().is_some() { "that touched this offset" } else { "" };
            say!("the last operations {which}\n{}", history.join("\n"));
        }
    }

    pub(crate) fn written(&mut self, path: &Path, shrunk: Option<&Shrunk>) {
        let name = path.display().to_string();
        self.failure["sequence"] = json!(name);
        if let Some(shrunk) = shrunk {
            let text = shrunk.sequence.text();
            let (ops, runs) = (shrunk.sequence.ops.len(), shrunk.runs);
            self.failure["shrunk"] = json!({ "ops": ops, "runs": runs, "text": text });
            if !self.json {
                say!("shrunk to {ops} operations in {runs} runs:\n{text}");
                if let Some(failure) = &shrunk.report.failure {
                    say!("which ends in {failure}");
                }
            }
        }
        if !self.json {
            say!("replay with: pageferry-fsx --replay {name}");
        }
    }

    pub(crate) fn summary(&self) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let bytes: u64 = self.compared.values().sum();
        if !self.json {
            if self.failure.is_null() {
                let (runs, ops) = (self.seeds.len(), self.ops);
                say!(
                    "{runs} sequences, {ops} operations, {bytes} bytes compared in {seconds:.1} s: no difference"
                );
            }
            return;
        }
        let kinds: serde_json::Map<String, Value> = self
            .kinds
            .iter()
            .map(|(kind, [done, refused, skipped])| {
                (kind.clone(), json!({ "done": done, "refused": refused, "skipped": skipped }))
            })
            .collect();
        let object = json!({
            "seeds": self.seeds, "operations": self.ops, "seconds": seconds,
            "kinds": kinds, "compared_bytes": self.compared, "counters": self.counters,
            "failure": self.failure,
        });
        say!("{object:#}");
    }
}
