//! Programs that copy: over what is there, into it, and by renaming.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Dice, pattern};
use crate::{beside_us, installed, rounds, run};

const FILES: usize = 5;

struct Copies {
    from: PathBuf,
    to: PathBuf,
}

impl Copies {
    /// The sources are out of the pest's reach only by luck, as is everything else.
    fn new(dir: &Path) -> Copies {
        let copies = Copies { from: dir.join("from"), to: dir.join("to") };
        std::fs::create_dir(&copies.from).unwrap();
        std::fs::create_dir(&copies.to).unwrap();
        for n in 0..FILES {
            std::fs::write(copies.source(n), pattern(90_000 * (n as u64 + 1) + 17)).unwrap();
            std::fs::copy(copies.source(n), copies.target(n)).unwrap();
        }
        copies
    }

    fn source(&self, n: usize) -> PathBuf {
        self.from.join(format!("file-{n}"))
    }

    fn target(&self, n: usize) -> PathBuf {
        self.to.join(format!("file-{n}"))
    }

    /// Changes a few stretches of a source, and its length.
    fn change(&self, n: usize, dice: &mut Dice) {
        let mut bytes = std::fs::read(self.source(n)).unwrap();
        for _ in 0..4 {
            let at = dice.roll(bytes.len() as u64 - 600) as usize;
            let by = dice.roll(255) as u8 + 1;
            bytes[at..at + 600].iter_mut().for_each(|byte| *byte ^= by);
        }
        bytes.resize((bytes.len() as i64 + dice.roll(9000) as i64 - 4500) as usize, 7);
        std::fs::write(self.source(n), bytes).unwrap();
    }

    fn everything(&self) -> Vec<u8> {
        (0..FILES).flat_map(|n| std::fs::read(self.target(n)).unwrap()).collect()
    }

    fn turns(&self, mut turn: impl FnMut(usize, &mut Dice)) -> Vec<u8> {
        let mut dice = Dice(4242);
        for _ in 0..12 * rounds() {
            for n in 0..FILES {
                self.change(n, &mut dice);
                turn(n, &mut dice);
            }
        }
        self.everything()
    }
}

#[test]
fn rsync_in_place() {
    if !installed("rsync") {
        return;
    }
    beside_us("rsync --inplace", |dir| {
        let copies = Copies::new(dir);
        copies.turns(|n, _| {
            // By checksum: the files change more often than once a second.
            run(Command::new("rsync")
                .args(["-a", "--inplace", "--no-whole-file", "--checksum"])
                .args([copies.source(n), copies.target(n)]));
            let (source, target) =
                (std::fs::read(copies.source(n)), std::fs::read(copies.target(n)));
            assert!(source.unwrap() == target.unwrap(), "rsync left a difference");
        })
    });
}

#[test]
fn cp_and_dd() {
    beside_us("cp and dd", |dir| {
        let copies = Copies::new(dir);
        copies.turns(|n, dice| match dice.roll(3) {
            0 => drop(run(Command::new("cp").args([copies.source(n), copies.target(n)]))),
            1 => drop(run(Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .args([copies.source(n), copies.target(n)]))),
            _ => {
                let (at, many) = (dice.roll(30), 1 + dice.roll(20));
                run(Command::new("dd")
                    .arg(format!("if={}", copies.source(n).display()))
                    .arg(format!("of={}", copies.target(n).display()))
                    .args(["bs=1777", "conv=notrunc", "status=none"])
                    .args([format!("skip={at}"), format!("seek={at}"), format!("count={many}")]));
            }
        })
    });
}

/// An editor writes a new file beside the old one and renames it over; so does `sed -i`.
#[test]
fn an_editor_saves() {
    beside_us("saving by renaming", |dir| {
        let copies = Copies::new(dir);
        copies.turns(|n, dice| match dice.roll(3) {
            0 => {
                run(Command::new("sed").args(["-i", "s/a/b/"]).arg(copies.target(n)));
            }
            1 => {
                run(Command::new("sh").arg("-c").arg("echo more >> \"$0\"").arg(copies.target(n)));
            }
            _ => {
                let fresh = copies.to.join("file.swp");
                std::fs::write(&fresh, std::fs::read(copies.source(n)).unwrap()).unwrap();
                std::fs::rename(&fresh, copies.target(n)).unwrap();
            }
        })
    });
}
