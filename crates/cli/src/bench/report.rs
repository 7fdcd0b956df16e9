//! What the benches found, as people and as programs read it.

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::{Figure, Row};
use crate::output::{line, table};

/// Prints each row as it comes, to programs, or all of them at the end, to people.
pub(super) struct Report {
    json: bool,
    table: Table,
    /// What could not be measured.
    absent: Vec<String>,
}

impl Report {
    pub(super) fn new(json: bool) -> Report {
        let mut table = table(presets::NOTHING);
        table.set_header(["figure", "ours", "floor", "unit", "ours / floor", "goal", ""]);
        Report { json, table, absent: Vec::new() }
    }

    pub(super) fn tell(&mut self, row: Row) -> anyhow::Result<()> {
        let (object, cells) = match row {
            Row::Figure(figure) => (object(&figure), cells(&figure, "")),
            Row::Counted(figure, which, bytes) => {
                let mut object = object(&figure);
                object["bytes"] = json!({ "count": bytes, "what": which });
                let counted = format!(" ({bytes} bytes {which})");
                (object, cells(&figure, &counted))
            }
            Row::Absent { name, why } => {
                self.absent.push(format!("{name}: not measured: {why}"));
                if self.json {
                    line(json!({ "figure": name, "absent": why }).to_string())?;
                }
                return Ok(());
            }
        };
        if self.json {
            line(object.to_string())?;
        }
        self.table.add_row(cells);
        Ok(())
    }

    pub(super) fn end(self) -> anyhow::Result<()> {
        if self.json {
            return Ok(());
        }
        line(self.table.to_string())?;
        for absent in self.absent {
            line(absent)?;
        }
        Ok(())
    }
}

fn object(f: &Figure) -> Value {
    json!({
        "figure": f.name, "what": f.what, "ours": f.ours, "floor": f.floor, "unit": f.unit,
        "ratio": f.ratio(), "goal": f.goal(), "met": f.met(),
    })
}

fn cells(f: &Figure, counted: &str) -> [String; 7] {
    let verdict = match f.met() {
        Some(true) => "met",
        Some(false) => "not met",
        None => "",
    };
    [
        format!("{}: {}{counted}", f.name, f.what),
        format!("{:.3}", f.ours),
        format!("{:.3}", f.floor),
        f.unit.to_owned(),
        format!("{:.2}", f.ratio()),
        f.goal().unwrap_or_default(),
        verdict.to_owned(),
    ]
}
