//! `pageferry-fsx`: the twin-file exerciser.
//!
//! Random operations over one file under a cache, with pins, device stores, evictions, mappings and
//! other processes, and the same operations, plainly, over a twin. Both have to show the same bytes.
//! The idea is that of `fsx`, which found bugs in most file systems there are.
#![deny(unsafe_code)]

mod args;
mod difference;
mod foreign;
mod generate;
mod home;
mod number;
mod op;
mod output;
mod plain;
mod ranges;
#[allow(unsafe_code)]
mod raw;
mod rng;
mod run;
mod sequence;
mod settings;
mod shrink;
mod touched;
mod watchdog;
mod weights;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

use crate::args::Args;
use crate::generate::Generator;
use crate::output::Output;
use crate::run::{Report, Site, Source, run};
use crate::sequence::Sequence;
use crate::settings::Settings;
use crate::watchdog::Watchdog;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let result = if args.next().is_some_and(|first| first == foreign::COMMAND) {
        let path = args.next().context("the file is missing");
        path.and_then(|path| foreign::live(Path::new(&path))).map(|()| true)
    } else {
        exercise(&Args::parse())
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("pageferry-fsx: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn default_out(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("pageferry-fsx-{name}.ops"))
}

/// True if there is no difference.
fn exercise(args: &Args) -> anyhow::Result<bool> {
    let site =
        Site { dir: args.dir.clone(), file: args.file.clone(), twin_dir: args.twin_dir.clone() };
    let limit = Duration::from_secs(args.hang_seconds);
    let hung = args.out.clone().unwrap_or_else(|| default_out("hang"));
    let watchdog = Watchdog::start(limit, move |lines| output::hangs(&hung, lines));
    let mut output = Output::new(args.json);
    let good = match &args.replay {
        Some(path) => {
            let sequence = Sequence::read(path)?;
            let report = sequence.run(&site, &watchdog)?;
            finish(args, &site, &watchdog, &mut output, None, &sequence.settings, report)?
        }
        None => generated(args, &site, &watchdog, &mut output)?,
    };
    output.summary();
    Ok(good)
}

fn generated(
    args: &Args,
    site: &Site,
    watchdog: &Watchdog,
    output: &mut Output,
) -> anyhow::Result<bool> {
    let (settings, weights) = (args.settings()?, args.weights()?);
    for seed in args.seed..args.seed.saturating_add(args.seeds) {
        let generator = Generator::new(seed, weights.clone(), args.every);
        let bar = output.bar(seed, args.ops);
        let source = Source::Generated(generator, args.ops);
        let report = run(&settings, site, source, watchdog, &|step| bar.set_position(step))?;
        bar.finish_and_clear();
        if !finish(args, site, watchdog, output, Some(seed), &settings, report)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Tells what a run came to; of a failed one, the sequence is written, and shrunk if so wished.
fn finish(
    args: &Args,
    site: &Site,
    watchdog: &Watchdog,
    output: &mut Output,
    seed: Option<u64>,
    settings: &Settings,
    report: Report,
) -> anyhow::Result<bool> {
    let sequence = Sequence { settings: settings.clone(), ops: report.ops.clone() };
    if let Some(path) = &args.record {
        sequence.write(path, "recorded")?;
    }
    output.count(seed, &report);
    let Some(failure) = &report.failure else { return Ok(true) };
    output.failed(seed, &report, failure);
    let name = seed.map_or("replay".into(), |seed| seed.to_string());
    let path = args.out.clone().unwrap_or_else(|| default_out(&name));
    let about = failure.to_string();
    if !args.shrink {
        sequence.write(&path, &about)?;
        output.written(&path, None);
        return Ok(false);
    }
    let limit = Duration::from_secs(args.shrink_seconds);
    let shrunk = shrink::shrink(&sequence, report, site, watchdog, args.shrink_tries, limit)?;
    let about = shrunk.report.failure.as_ref().map_or(about, ToString::to_string);
    shrunk.sequence.write(&path, &about)?;
    output.written(&path, Some(&shrunk));
    Ok(false)
}
