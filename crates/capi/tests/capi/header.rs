//! The header that is checked in is the one that the comments make.

use crate::here;

/// In the order of the header.
const SOURCES: [&str; 5] = ["border", "cache", "file", "pin", "map"];

#[test]
fn header_is_what_the_sources_say() {
    let config = cbindgen::Config::from_file(here().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(here().join("src").join(source).with_extension("rs"));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = here().join("include/pageferry.h");
    if std::env::var_os("PAGEFERRY_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        made == checked_in,
        "include/pageferry.h is not what the sources say: \
         PAGEFERRY_BLESS=1 cargo test -p pageferry-capi header"
    );
}
