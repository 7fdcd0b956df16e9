//! Printing that survives `| head`.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, TableStyle};

/// Prints a complaint to standard error. If nobody reads that, there is nobody left to tell.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "pageferry: {text}");
}

/// Prints a line to standard output.
///
/// # Errors
/// The stream's; see [`is_closed_pipe`].
pub(crate) fn line(text: impl AsRef<str>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_ref().as_bytes()).and_then(|()| out.write_all(b"\n"));
    written.and_then(|()| out.flush()).context("writing to standard output")
}

/// Whether the reader of our output has gone: not our failure.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|e| e.downcast_ref::<io::Error>());
    io.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, b| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// A hex dump, sixteen bytes a line, as xfs_io prints it.
pub(crate) fn dump(offset: u64, bytes: &[u8]) -> impl Iterator<Item = String> + '_ {
    let row = move |(at, row): (usize, &[u8])| {
        let hex: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
        let shown = |b: &u8| if b.is_ascii_graphic() { char::from(*b) } else { '.' };
        let text: String = row.iter().map(shown).collect();
        format!("{:08x}:  {:<47}  {text}", offset + 16 * at as u64, hex.join(" "))
    };
    bytes.chunks(16).enumerate().map(row)
}

/// A table that fits the terminal, or 100 columns where there is none.
pub(crate) fn table(style: TableStyle) -> Table {
    let mut table = Table::new();
    table.load_style(style).set_content_arrangement(ContentArrangement::Dynamic);
    if !io::stdout().is_terminal() {
        table.set_width(100);
    }
    table
}
