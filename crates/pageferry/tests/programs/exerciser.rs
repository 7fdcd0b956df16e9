//! The `fsx` of others (`cargo install fsx --root target/tools`): it compares every byte that it reads
//! with what it wrote, while its file is under a cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::pest::Pest;
use crate::{rounds, run, tell};

/// What it does beside its usual reads, writes, mapped accesses and truncations.
const SETTINGS: &str = "
nomsyncafterwrite = true
[weights]
close_open = 2.0
invalidate = 0.2
fsync = 0.1
fdatasync = 0.1
punch_hole = 1.0
sendfile = 1.0
posix_fadvise = 0.5
copy_file_range = 1.0
";

fn tool() -> Option<PathBuf> {
    let asked = std::env::var_os("PAGEFERRY_FSX").map(PathBuf::from);
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin/fsx");
    asked.into_iter().chain([ours]).find(|path| path.is_file())
}

fn exercise(dir: &Path) {
    let Some(fsx) = tool() else {
        return skipped!("fsx is not installed (cargo install fsx --root target/tools)");
    };
    for seed in 1..=rounds() {
        let aside = tempfile::tempdir().unwrap();
        let settings = aside.path().join("fsx.toml");
        std::fs::write(&settings, SETTINGS).unwrap();
        let scratch = tempfile::tempdir_in(dir).unwrap();
        let pest = Pest::start(scratch.path(), u64::from(seed) * 91);
        run(Command::new(&fsx)
            .args(["-q", "-N", "20000", "-S", &seed.to_string(), "-f"])
            .arg(&settings)
            .arg("-P")
            .arg(aside.path())
            .arg(scratch.path().join("file")));
        let tally = pest.finish();
        tell(&format!("fsx in {}, seed {seed}, beside {tally}", dir.display()));
    }
}

#[test]
fn fsx() {
    exercise(&std::env::temp_dir());
}

#[test]
fn fsx_in_memory() {
    let dir = Path::new("/dev/shm");
    if !dir.is_dir() {
        return skipped!("{} is not there", dir.display());
    }
    exercise(dir);
}
