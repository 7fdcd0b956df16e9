//! What the demo found, for people and for programs.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;

use super::Phase;
use crate::args::DemoArgs;
use crate::output::line;
use crate::size::human;

/// All turns together.
struct Totals {
    agree: usize,
    moved: u64,
    recopied: u64,
    seconds: f64,
    rival_seconds: f64,
}

impl Totals {
    fn of(phases: &[Phase]) -> Totals {
        Totals {
            agree: phases.iter().filter(|p| p.agree).count(),
            moved: phases.iter().map(|p| p.moved).sum(),
            recopied: phases.iter().map(|p| p.rival_moved).sum(),
            seconds: phases.iter().map(|p| p.device).sum::<Duration>().as_secs_f64(),
            rival_seconds: phases.iter().map(|p| p.rival).sum::<Duration>().as_secs_f64(),
        }
    }
}

pub(super) fn report(
    args: &DemoArgs,
    bytes: u64,
    load: &(u64, Duration),
    phases: &[Phase],
) -> anyhow::Result<()> {
    let totals = Totals::of(phases);
    if args.json {
        return report_json(bytes, load, phases, &totals);
    }
    line(table(load, phases).to_string())?;
    line(format!(
        "digests agree: {} of {} (sha256sum's, and an independent computation's)",
        totals.agree,
        phases.len()
    ))?;
    let (ours, theirs) = (totals.moved, totals.recopied);
    let spared = match theirs.checked_sub(ours) {
        Some(spared) => format!(": {} were not moved", human(spared)),
        None => String::new(),
    };
    line(format!(
        "bytes moved: {} instead of {}{spared} ({})",
        human(ours),
        human(theirs),
        compared(ours.max(1) as f64, theirs as f64, 0, "fewer")
    ))?;
    line(format!(
        "device turns took {:.1} ms instead of {:.1} ms ({})",
        totals.seconds * 1e3,
        totals.rival_seconds * 1e3,
        compared(totals.seconds, totals.rival_seconds, 1, "less")
    ))?;
    Ok(())
}

/// How many times smaller, or larger, ours is.
fn compared(ours: f64, theirs: f64, digits: usize, smaller: &str) -> String {
    if ours <= theirs {
        format!("{:.digits$} times {smaller}", theirs / ours)
    } else {
        format!("{:.1} times more", ours / theirs)
    }
}

fn report_json(
    bytes: u64,
    load: &(u64, Duration),
    phases: &[Phase],
    totals: &Totals,
) -> anyhow::Result<()> {
    let row = |p: &Phase| {
        json!({
            "moved_bytes": p.moved, "device_s": p.device.as_secs_f64(),
            "program_s": p.program.as_secs_f64(), "recopy_bytes": p.rival_moved,
            "recopy_s": p.rival.as_secs_f64(), "agree": p.agree,
        })
    };
    let rows: Vec<_> = phases.iter().map(row).collect();
    let object = json!({
        "ok": totals.agree == phases.len(), "file_bytes": bytes, "loaded_bytes": load.0,
        "load_s": load.1.as_secs_f64(), "phases": rows, "digests_agree": totals.agree,
        "moved_bytes": totals.moved, "recopy_bytes": totals.recopied,
        "times_fewer_bytes": totals.recopied as f64 / totals.moved.max(1) as f64,
        "times_less_time": totals.rival_seconds / totals.seconds,
    });
    line(object.to_string())?;
    Ok(())
}

fn table(load: &(u64, Duration), phases: &[Phase]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
        "turn",
        "bytes moved",
        "device works",
        "sha256sum",
        "re-copying moves",
        "re-copying takes",
        "digest",
    ]);
    let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1e3);
    table.add_row([
        "load".into(),
        human(load.0),
        ms(load.1),
        "".into(),
        "".into(),
        "".into(),
        "".into(),
    ]);
    for (n, p) in phases.iter().enumerate() {
        let verdict = if p.agree { "agrees" } else { "DISAGREES" };
        table.add_row([
            (n + 1).to_string(),
            human(p.moved),
            ms(p.device),
            ms(p.program),
            human(p.rival_moved),
            ms(p.rival),
            verdict.into(),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::compared;

    #[test]
    fn slower_is_not_called_less() {
        assert_eq!(compared(1.0, 5.9, 1, "less"), "5.9 times less");
        assert_eq!(compared(10.0, 2048.0, 0, "fewer"), "205 times fewer");
        assert_eq!(compared(5.0, 3.0, 1, "less"), "1.7 times more");
    }
}
