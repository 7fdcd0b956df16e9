//! One page changed by another process: what moves again.

use anyhow::ensure;
use pageferry::{Guard, PinMode, Validation};

use super::{Cached, GUARDS, absent};
use crate::bench::outsider::{Deed, Outsider, Site};
use crate::bench::{Figure, Ground, PAGE, Row, timed};

pub(super) fn invalidation(
    ground: &Ground,
    outsider: &mut Outsider,
    rows: &mut Vec<Row>,
) -> anyhow::Result<()> {
    let at = ground.bytes / 2 / PAGE * PAGE;
    let mut site = Site { path: outsider.place("ours"), at, byte: 0 };
    let mut data = ground.file_at(&site.path)?;
    // Where nothing is away, a lease is none.
    for (name, guard) in
        GUARDS.into_iter().filter(|(_, g)| matches!(g, Guard::None | Guard::Fanotify))
    {
        let cached = Cached::new(ground, &site.path, guard, Validation::Proof)?;
        match cached.refusal()? {
            Some(why) if guard != Guard::None => {
                rows.push(absent(&format!("{name}, invalidation"), &why));
                continue;
            }
            // It has stored to the first page.
            _ => data[..PAGE as usize].fill(1),
        }
        cached.load()?;
        let mut moved = 0;
        let (ours, floor) = ground.in_turn(|ours| {
            if ours {
                site.byte = site.byte.wrapping_add(1);
                outsider.does(&site.order(Deed::Write, 1))?;
            } else {
                cached.file.evict(0..ground.bytes)?;
            }
            let before = cached.count("fetched_bytes");
            let took = timed(|| cached.load())?;
            let fetched = cached.count("fetched_bytes") - before;
            match ours {
                true => moved = moved.max(fetched),
                false => ensure!(fetched == ground.bytes, "loading moved {fetched} bytes only"),
            }
            Ok(took)
        })?;
        data[at as usize..][..PAGE as usize].fill(site.byte);
        ensure_same(&cached, &data)?;
        rows.extend(figures(name, ground.bytes, moved, (ours, floor)).map(Row::Figure));
    }
    Ok(())
}

/// The device has the file's bytes, all of them.
fn ensure_same(cached: &Cached, data: &[u8]) -> anyhow::Result<()> {
    let pin = cached.file.pin(0..cached.bytes, PinMode::Read)?;
    let (mut at, mut same) = (0, true);
    pin.view()?.visit(0..cached.bytes, &mut |piece| {
        same &= piece == &data[at..at + piece.len()];
        at += piece.len();
    })?;
    ensure!(same && at == data.len(), "the device's bytes are not the file's");
    Ok(())
}

fn figures(guard: &str, bytes: u64, moved: u64, (ours, floor): (f64, f64)) -> [Figure; 2] {
    let name = format!("guards, {guard}, invalidation of {} MiB", bytes >> 20);
    [
        Figure {
            name: name.clone(),
            what: "bytes moved after another process wrote 4 KiB, beside the file's",
            ours: moved as f64,
            floor: bytes as f64,
            unit: "bytes",
            goal: Some(1.0),
        },
        Figure {
            name,
            what: "pin after another process wrote 4 KiB, beside loading the file",
            ours: ours * 1e3,
            floor: floor * 1e3,
            unit: "ms",
            goal: Some(1.2),
        },
    ]
}
