//! `run`: a built-in kernel over whole files, through windows that fit the device.

mod kernels;
mod pipeline;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use pageferry::{Cache, File};
use serde_json::{Value, json};

use crate::args::{KernelName, RunArgs};
use crate::output::line;
use crate::setup::{self, FLUSH_AGE};
use crate::size::human;
use kernels::Kernel;

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<bool> {
    let own = || setup::cache(args.device_memory, args.frame, FLUSH_AGE);
    let cache = setup::connect_or(args.connect.as_deref(), own)?;
    let jobs = jobs(args)?;
    let open = |path: &&Path| match args.kernel {
        KernelName::Sum | KernelName::Histogram => cache.open_read_only(path),
        _ => cache.open(path),
    };
    // A mistake in the last name shall not be found after the first file was changed. They are not
    // kept open: there may be more of them than descriptors.
    for path in jobs.iter().flatten() {
        open(path)?.close()?;
    }
    let started = Instant::now();
    let mut results = Vec::new();
    let mut bytes = 0;
    for job in &jobs {
        let names: Vec<String> = job.iter().map(|f| f.display().to_string()).collect();
        let files = job.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let kernel = Kernel::new(args)?;
        let worked = pipeline::run(&cache, &files, &kernel, args.window.unwrap_or(0));
        let own = args.connect.is_none().then_some(&cache);
        bytes += closed(own, files, worked).with_context(|| names.join(", "))?;
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
            "ok": true, "kernel": format!("{:?}", args.kernel).to_lowercase(), "result": total, "files": per_file,
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

/// Closes the files of a job; what is lost with them, if the cache is this process's own, is said beside what
/// went wrong.
fn closed(
    own: Option<&Cache>,
    files: Vec<File>,
    worked: anyhow::Result<u64>,
) -> anyhow::Result<u64> {
    let closing: Result<Vec<()>, _> = files.into_iter().map(File::close).collect();
    let result = worked.and_then(|bytes| closing.map(|_| bytes).map_err(Into::into));
    match own.map_or(0, setup::lost_bytes) {
        0 => result,
        lost => result.with_context(|| {
            format!("{lost} bytes that the device wrote could not be written back and are LOST")
        }),
    }
}

/// The sets of files that the kernel runs over, one after the other.
fn jobs(args: &RunArgs) -> anyhow::Result<Vec<Vec<&Path>>> {
    let files: Vec<&Path> = args.files.iter().map(|f| f.as_path()).collect();
    if args.kernel == KernelName::Saxpy {
        if files.len() != 2 {
            bail!("saxpy takes two files, X and Y (Y is changed), not {}", files.len());
        }
        if is_same(files[0], files[1])? {
            bail!(
                "X and Y are the same file ({} and {}): give saxpy a copy of it as X",
                files[0].display(),
                files[1].display()
            );
        }
        return Ok(vec![files]);
    }
    Ok(files.into_iter().map(|f| vec![f]).collect())
}

/// Both names lead to one file.
fn is_same(x: &Path, y: &Path) -> anyhow::Result<bool> {
    let identity = |path: &Path| -> anyhow::Result<(u64, u64)> {
        let meta = path.metadata().with_context(|| format!("opening {}", path.display()))?;
        Ok((meta.dev(), meta.ino()))
    };
    Ok(identity(x)? == identity(y)?)
}
