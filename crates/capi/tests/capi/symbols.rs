//! What the shared library exports.

use std::collections::BTreeSet;
use std::process::Command;

use crate::{here, installed, run};

/// The functions that the header declares.
fn declared() -> BTreeSet<String> {
    let header = std::fs::read_to_string(here().join("include/pageferry.h")).unwrap();
    // A declaration has its name on a line that begins with its type, before the first bracket.
    let lines = header.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    let heads = lines.filter_map(|line| line.split_once('(')).map(|(head, _)| head);
    let names = heads.filter_map(|head| head.rsplit([' ', '*']).next());
    names.filter(|name| name.starts_with("pf_")).map(str::to_owned).collect()
}

#[test]
fn exactly_the_header_is_exported_under_a_version() {
    let library = installed().join("lib/libpageferry.so.0");
    let mut nm = Command::new("nm");
    nm.args(["-D", "--defined-only", "--with-symbol-versions", "--format=posix"]).arg(&library);
    let listed = run(&mut nm);
    let exported: BTreeSet<String> =
        listed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    let mut expected: BTreeSet<String> =
        declared().iter().map(|name| format!("{name}@@PAGEFERRY_0.1")).collect();
    assert!(expected.len() > 20, "{expected:?}");
    // The version itself; some linkers list it.
    expected.insert("PAGEFERRY_0.1".into());
    let mut exported = exported;
    exported.insert("PAGEFERRY_0.1".into());
    assert_eq!(exported, expected);
}

#[test]
fn it_is_called_by_its_version_and_found_by_pkg_config() {
    let prefix = installed();
    let dynamic = run(Command::new("readelf").arg("-d").arg(prefix.join("lib/libpageferry.so")));
    assert!(dynamic.contains("soname: [libpageferry.so.0]"), "{dynamic}");
    let file = std::fs::read_to_string(prefix.join("lib/pkgconfig/pageferry.pc")).unwrap();
    assert!(file.contains(&format!("Version: {}\n", env!("CARGO_PKG_VERSION"))), "{file}");
    assert!(file.starts_with(&format!("prefix={}\n", prefix.display())), "{file}");
}
