//! `run`: a built-in kernel over whole files, through windows that fit the device.

mod kernels;
mod pipeline;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::args::{KernelName, RunArgs};
use crate::output::line;
use crate::setup::{self, FLUSH_AGE};
use crate::size::human;
use kernels::Kernel;

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<bool> {
    let (cache, _) = setup::cache(args.device_memory, args.frame, FLUSH_AGE)?;
    let jobs = jobs(args)?;
    let started = Instant::now();
    let mut results = Vec::new();
    let mut bytes = 0;
    for job in &jobs {
        let names: Vec<String> = job.iter().map(|f| f.display().to_string()).collect();
        let open = |path: &&Path| match args.kernel {
            KernelName::Sum | KernelName::Histogram => cache.open_read_only(path),
            _ => cache.open(path),
        };
        let files: Vec<_> = job.iter().map(open).collect::<Result<_, _>>()?;
        let kernel = Kernel::new(args)?;
        let window = args.window.unwrap_or(0);
        bytes +=
            pipeline::run(&cache, &files, &kernel, window).with_context(|| names.join(", "))?;
        for file in files {
            file.close()?;
        }
        results.push((names, kernel.result()));
    }
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        let counters = cache.stats();
        let counters: serde_json::Map<_, _> =
            counters.counters().iter().map(|c| (c.name.to_owned(), Value::from(c.value))).collect();
        let per_file: Vec<_> = results
            .iter()
            .map(|(names, result)| json!({ "files": names, "result": result }))
            .collect();
        let total = kernels::total(results.iter().map(|(_, r)| r));
        line(json!({
            "kernel": format!("{:?}", args.kernel).to_lowercase(), "result": total, "files": per_file,
            "bytes": bytes, "seconds": seconds, "counters": counters,
        }).to_string())?;
        return Ok(true);
    }
    for (names, result) in &results {
        line(format!("{}: {}", names.join(" "), kernels::show(result)))?;
    }
    line(format!(
        "{} in {seconds:.2} s through {} of device memory",
        human(bytes),
        human(cache.memory_bytes())
    ))?;
    Ok(true)
}

/// The sets of files that the kernel runs over, one after the other.
fn jobs(args: &RunArgs) -> anyhow::Result<Vec<Vec<&Path>>> {
    let files: Vec<&Path> = args.files.iter().map(|f| f.as_path()).collect();
    if args.kernel == KernelName::Saxpy {
        if files.len() != 2 {
            bail!("saxpy takes two files, X and Y (Y is changed), not {}", files.len());
        }
        return Ok(vec![files]);
    }
    Ok(files.into_iter().map(|f| vec![f]).collect())
}
