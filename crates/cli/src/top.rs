//! `top`: who holds what of a daemon's cache, and what it does.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use pageferry::{Cache, Session, Stats};
use serde_json::{Value, json};

use crate::args::TopArgs;
use crate::output::{line, table};
use crate::size::human;

/// Puts the cursor in the corner and clears what is behind it.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(crate) fn top(args: &TopArgs) -> anyhow::Result<bool> {
    let cache = Cache::connect(&args.connect)?;
    let pause = Duration::from_secs_f64(args.interval);
    let mut before = None;
    loop {
        let look = Look::take(&cache)?;
        let shown = match (args.json, args.once) {
            (true, _) => look.json(before.as_ref()).to_string(),
            (false, true) => look.text(None),
            (false, false) => {
                let clear = if std::io::stdout().is_terminal() { CLEAR } else { "" };
                format!("{clear}{}", look.text(before.as_ref()))
            }
        };
        line(shown)?;
        if args.once {
            return Ok(true);
        }
        before = Some(look);
        std::thread::sleep(pause);
    }
}

/// What is seen at one moment.
struct Look {
    at: Instant,
    sessions: Vec<Session>,
    stats: Stats,
}

impl Look {
    fn take(cache: &Cache) -> anyhow::Result<Look> {
        let stats = cache.stats();
        // After the counters, which are none where the daemon is gone: this says so.
        let sessions = cache.sessions()?;
        Ok(Look { at: Instant::now(), sessions, stats })
    }

    fn count(&self, name: &str) -> u64 {
        self.stats.get(name).unwrap_or(0)
    }

    /// What a counter has gained since a look before this one, or since the daemon began.
    fn gained(&self, name: &str, before: Option<&Look>) -> u64 {
        self.count(name).saturating_sub(before.map_or(0, |look| look.count(name)))
    }

    /// Of the bytes that were pinned, the share that was on the device already; `None`: none were.
    fn hit_rate(&self, before: Option<&Look>) -> Option<f64> {
        let pinned = self.gained("pinned_bytes", before);
        let moved = self.gained("fetched_bytes", before) + self.gained("zeroed_bytes", before);
        // Prefetching moves what nobody has pinned.
        (pinned > 0).then(|| pinned.saturating_sub(moved) as f64 / pinned as f64)
    }

    /// By the second, since the look before.
    fn rate(&self, name: &str, before: &Look) -> f64 {
        let seconds = (self.at - before.at).as_secs_f64().max(1e-6);
        self.gained(name, Some(before)) as f64 / seconds
    }

    fn json(&self, before: Option<&Look>) -> Value {
        let counters = self.stats.counters().iter();
        let counters: serde_json::Map<_, _> =
            counters.map(|c| (c.name.to_owned(), Value::from(c.value))).collect();
        let sessions: Vec<_> = self
            .sessions
            .iter()
            .map(|s| {
                json!({
                    "session": s.number, "pid": s.pid, "uid": s.uid, "program": s.program,
                    "files": s.files, "pins": s.pins, "pinned_bytes": s.pinned_bytes,
                    "requests": s.requests,
                })
            })
            .collect();
        let mut object = json!({
            "ok": true, "sessions": sessions, "counters": counters, "hit_rate": self.hit_rate(before),
        });
        if let Some(before) = before {
            let rate =
                |(name, _): &(&str, &str)| ((*name).to_owned(), self.rate(name, before).into());
            object["per_second"] = Value::Object(RATES.iter().map(rate).collect());
        }
        object
    }

    fn text(&self, before: Option<&Look>) -> String {
        let share = self.hit_rate(before);
        let hits = share.map_or("-".into(), |share| format!("{:.1} %", 100.0 * share));
        let mut text = format!(
            "device memory {} of {} used: {} of files, {} of them away; hit rate {hits}\n",
            human(self.count("used_bytes")),
            human(self.count("memory_bytes")),
            human(self.count("resident_bytes")),
            human(self.count("away_bytes")),
        );
        let told = RATES.map(|(name, told)| match before {
            Some(before) => format!("{told} {}/s", shown(name, self.rate(name, before) as u64)),
            None => format!("{told} {}", shown(name, self.gained(name, None))),
        });
        text += &told.join(", ");
        if before.is_none() {
            text += " since the daemon began";
        }
        format!("{text}\n{}", self.table())
    }

    fn table(&self) -> Table {
        let mut table = table(presets::NOTHING);
        table.set_header([
            "session", "pid", "uid", "program", "files", "pins", "pinned", "requests",
        ]);
        for s in &self.sessions {
            table.add_row([
                s.number.to_string(),
                s.pid.to_string(),
                s.uid.to_string(),
                s.program.clone(),
                s.files.to_string(),
                s.pins.to_string(),
                human(s.pinned_bytes),
                s.requests.to_string(),
            ]);
        }
        for (at, column) in table.column_iter_mut().enumerate() {
            if at != 3 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

/// The counters whose growth is shown, and what it is.
const RATES: [(&str, &str); 5] = [
    ("pins", "pins"),
    ("pinned_bytes", "pinned"),
    ("fetched_bytes", "in"),
    ("written_back_bytes", "out"),
    ("evicted_bytes", "evicted"),
];

fn shown(name: &str, value: u64) -> String {
    if name.ends_with("_bytes") { human(value) } else { value.to_string() }
}
