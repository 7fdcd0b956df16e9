//! Which rule of a file-backed device page cache stands where.
//!
//! The rules C1-C120 were gathered from the kernel's HMM code and self-tests, the RFC "Allow
//! file-backed or shared device private pages", and ordinary file behaviour. `docs/conformance.md`
//! is generated from the table here (`PAGEFERRY_BLESS=1 cargo test -p pageferry --test conformance`);
//! the test fails where the document or the name of a test is out of date.

mod rules;

use std::fmt::Write;
use std::path::Path;

use rules::{RULES, Standing};

/// The names of all tests of the suite and of the exerciser, as "file::name".
fn suite() -> Vec<String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dirs = [here.join("tests/suite"), here.join("../fsx/tests")];
    let mut names = Vec::new();
    for entry in dirs.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap()) {
        let path = entry.unwrap().path();
        let file = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut is_test = false;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("fn ").filter(|_| is_test) {
                names.push(format!("{file}::{}", rest.split('(').next().unwrap()));
            }
            is_test = line == "#[test]";
        }
    }
    names
}

/// The files of the suite that run with a daemon's cache as well.
fn connected() -> Vec<String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(here.join("tests/connected/main.rs")).unwrap();
    let files = text.lines().filter_map(|line| line.strip_prefix("#[path = \"../suite/"));
    files.map(|file| file.strip_suffix(".rs\"]").unwrap().to_owned()).collect()
}

fn document() -> String {
    let connected = connected();
    let named = |name: &str| {
        let file = name.split("::").next().unwrap();
        // The exerciser's tests say themselves of which form they are.
        let both = connected.iter().any(|it| it == file) || file == "fsx";
        if both { format!("`{name}`") } else { format!("`{name}` (embedded only)") }
    };
    let count = |want: fn(&Standing) -> bool| RULES.iter().filter(|r| want(&r.2)).count();
    let mut text = String::from(
        "# Conformance\n\nGenerated from `crates/pageferry/tests/conformance/rules.rs`; do not edit.\n\n",
    );
    writeln!(
        text,
        "{} rules: {} tested, {} not applicable, {} wait for a capability.\n",
        RULES.len(),
        count(|s| matches!(s, Standing::Tested(_))),
        count(|s| matches!(s, Standing::NotApplicable(_))),
        count(|s| matches!(s, Standing::Waits(_))),
    )
    .unwrap();
    text.push_str("Tests run in both forms, embedded and with a daemon's cache, but for those that say so.\n\n");
    text.push_str("| rule | says | standing |\n|---|---|---|\n");
    for (number, says, standing) in RULES {
        let standing = match standing {
            Standing::Tested(names) => {
                names.iter().map(|n| named(n)).collect::<Vec<_>>().join(", ")
            }
            Standing::NotApplicable(why) => format!("not applicable: {why}"),
            Standing::Waits(what) => format!("waits for {what}"),
        };
        writeln!(text, "| C{number} | {says} | {standing} |").unwrap();
    }
    text
}

#[test]
fn every_rule_stands_somewhere() {
    let numbers: Vec<u32> = RULES.iter().map(|r| r.0).collect();
    assert_eq!(numbers, (1..=120).collect::<Vec<_>>());
    let suite = suite();
    for (number, _, standing) in RULES {
        if let Standing::Tested(names) = standing {
            assert!(!names.is_empty(), "C{number} names no test");
            for name in *names {
                assert!(suite.iter().any(|s| s == name), "C{number}: there is no test {name}");
            }
        }
    }
}

#[test]
fn the_document_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance.md");
    if std::env::var_os("PAGEFERRY_BLESS").is_some() {
        std::fs::write(&path, document()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written == document(), "docs/conformance.md is out of date: see the head of this file");
}
