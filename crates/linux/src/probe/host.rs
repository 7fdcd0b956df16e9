//! The machine and the limits of this process.

use std::fs;

use super::{Attempt, Finding};
use crate::limits;

pub(super) const ATTEMPTS: &[Attempt] = &[
    Attempt {
        name: "kernel",
        run: kernel,
        then: "nothing: only what follows counts",
        otherwise: "/proc is not mounted, without which descriptors cannot be opened anew",
    },
    Attempt {
        name: "memory",
        run: memory,
        then: "the page cache lives in what is available",
        otherwise: "unknown how much the page cache can hold",
    },
    Attempt {
        name: "huge-pages",
        run: huge_pages,
        then: "large anonymous buffers get huge pages by themselves or on request",
        otherwise: "large anonymous buffers take more TLB misses",
    },
    Attempt {
        name: "mappings",
        run: mappings,
        then: "tens of thousands of scattered ranges can be away at once",
        otherwise: "few scattered ranges can be away at once: raise vm.max_map_count",
    },
    Attempt {
        name: "file-size-limit",
        run: file_size,
        then: "files may grow as far as the file system lets them",
        otherwise: "writes beyond the limit fail with EFBIG (never with a fatal signal)",
    },
];

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map(|t| t.trim().to_owned()).map_err(|e| format!("{path}: {e}"))
}

fn kernel() -> Finding {
    Ok(format!("Linux {}", read("/proc/sys/kernel/osrelease")?))
}

fn memory() -> Finding {
    let text = read("/proc/meminfo")?;
    let kib = |name: &str| -> Result<u64, String> {
        text.lines()
            .find_map(|l| l.strip_prefix(name)?.strip_suffix("kB")?.trim().parse().ok())
            .ok_or_else(|| format!("/proc/meminfo does not tell {name}"))
    };
    let (total, available) = (kib("MemTotal:")?, kib("MemAvailable:")?);
    Ok(format!("{} MiB, {} MiB available", total >> 10, available >> 10))
}

fn huge_pages() -> Finding {
    let modes = read("/sys/kernel/mm/transparent_hugepage/enabled")?;
    if modes.contains("[never]") { Err(modes) } else { Ok(modes) }
}

fn mappings() -> Finding {
    let limit = limits::max_map_count().map_err(|e| e.to_string())?;
    let used = limits::vma_count().map_err(|e| e.to_string())?;
    let text = format!("vm.max_map_count is {limit}, {used} used");
    if limit < 65_530 { Err(text) } else { Ok(text) }
}

fn file_size() -> Finding {
    match limits::max_file_bytes() {
        u64::MAX => Ok("RLIMIT_FSIZE is unlimited".to_owned()),
        limit => Err(format!("RLIMIT_FSIZE is {limit} bytes")),
    }
}
