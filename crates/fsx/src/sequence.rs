//! A sequence as text: a `set` line, then one operation a line; `#` begins a comment.

use std::path::Path;

use anyhow::Context;

use crate::op::Op;
use crate::settings::Settings;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) settings: Settings,
    pub(crate) ops: Vec<Op>,
}

impl Sequence {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Sequence> {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {name}"))?;
        Sequence::parse(&text).map_err(|e| anyhow::anyhow!("{name}: {e}"))
    }

    pub(crate) fn write(&self, path: &Path, about: &str) -> anyhow::Result<()> {
        let about: String = about.lines().map(|l| format!("# {l}\n")).collect();
        std::fs::write(path, about + &self.text())
            .with_context(|| format!("writing {}", path.display()))
    }

    pub(crate) fn text(&self) -> String {
        let ops: String = self.ops.iter().map(|op| format!("{op}\n")).collect();
        format!("{}\n{ops}", self.settings)
    }

    pub(crate) fn parse(text: &str) -> Result<Sequence, String> {
        let mut sequence = Sequence { settings: Settings::default(), ops: Vec::new() };
        for (n, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            let parsed = match line.split_whitespace().next() {
                None => Ok(()),
                Some("set") => line.parse().map(|s| sequence.settings = s),
                Some(_) => line.parse().map(|op| sequence.ops.push(op)),
            };
            parsed.map_err(|e| format!("line {}: {e}", n + 1))?;
        }
        Ok(sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Access, Act, By, Mode};
    use proptest::prelude::*;

    /// Any operation: the words are the real ones, the values anything they can be.
    fn any_op() -> impl Strategy<Value = Op> {
        let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), 0u64..20);
        let flags = (any::<bool>(), 0usize..3, 0usize..34);
        (numbers, flags).prop_map(|((at, len, fill, slot), (keep, who, which))| {
            let by = By::ALL[who];
            let mode = [Mode::Read, Mode::Write, Mode::Overwrite][who];
            let access = match which {
                0 => Access::Read { at, len },
                1 => Access::Write { at, len, fill },
                2 => Access::Append { len, fill },
                3 => Access::Direct { at, len, fill },
                4 => Access::CopyFrom { at, len, fill },
                5 => Access::Resize { size: at },
                6 => Access::Truncate { size: at },
                7 => Access::Empty {},
                8 => Access::Punch { at, len },
                9 => Access::Zero { at, len, keep },
                10 => Access::Allocate { at, len, keep },
                11 => Access::Collapse { at, len },
                12 => Access::Insert { at, len },
                13 => Access::Sync {},
                14 => Access::Hold {},
                15 => Access::LetGo {},
                16 => Access::Map { slot, at, len, writable: keep },
                17 => Access::Unmap { slot },
                18 => Access::Load { slot, at, len },
                19 => Access::Store { slot, at, len, fill },
                other => return Op::Act(any_act(other, at, len, fill, slot, keep, mode)),
            };
            Op::By(by, access)
        })
    }

    fn any_act(n: usize, at: u64, len: u64, fill: u64, slot: u64, keep: bool, mode: Mode) -> Act {
        match n {
            20 => Act::Pin { slot, at, len, mode },
            21 => Act::DeviceLoad { slot, at, len },
            22 => Act::DeviceStore { slot, at, len, fill },
            23 => Act::Release { slot, keep },
            24 => Act::See { at, len },
            25 => Act::Stint { at, len, mode, from: fill, bytes: slot, fill, keep },
            26 => Act::View { at, len, writable: keep, accesses: slot, fill },
            27 => Act::Poke { slot, at, fill },
            28 => Act::Prefetch { at, len },
            29 => Act::Evict { at, len },
            30 => Act::Flush { at, len },
            31 => Act::Reopen {},
            32 => Act::Restart {},
            _ => Act::Check {},
        }
    }

    proptest! {
        #[test]
        fn operations_come_back(op in any_op()) {
            prop_assert_eq!(op.to_string().parse::<Op>(), Ok(op.clone()));
            prop_assert!(crate::op::kinds().contains(&op.kind()));
        }

        #[test]
        fn sequences_come_back(ops in prop::collection::vec(any_op(), 0..20), size in any::<u64>()) {
            let settings = Settings { size, ..Settings::default() };
            let sequence = Sequence { settings, ops };
            prop_assert_eq!(Sequence::parse(&sequence.text()), Ok(sequence));
        }

        #[test]
        fn any_text_is_a_sequence_or_an_error(text in ".*") {
            let _ = Sequence::parse(&text);
        }
    }

    #[test]
    fn errors_say_where() {
        for (text, part) in [
            ("# nothing\nfly at=3", "line 2: 'fly' is no operation"),
            ("cache read at=3", "'len=' is missing"),
            ("cache read at=3 len=x", "len: 'x' is not a number"),
            ("cache read at=3 len=4 at=5", "comes twice"),
            ("see at", "'at' is not name=value"),
            ("cache", "an operation is missing"),
            ("pin slot=0 at=0 len=1 mode=some", "no mode"),
            ("set speed=9", "there is no setting 'speed'"),
        ] {
            let error = Sequence::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
