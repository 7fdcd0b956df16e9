//! How often each kind of operation is chosen.

use std::collections::BTreeMap;

use crate::op::{Access, Act, By, kind, kinds};

/// Of each kind of operation, how often relative to the others.
#[derive(Clone, Debug)]
pub(crate) struct Weights(BTreeMap<String, u64>);

fn access_weight(by: By, word: &str) -> u64 {
    let (cache, own, foreign) = match word {
        "read" => (20, 5, 10),
        "write" => (40, 8, 15),
        "append" => (3, 1, 3),
        "direct" => (0, 3, 6),
        "copy-from" => (0, 2, 5),
        "resize" => (6, 1, 3),
        "truncate" => (0, 1, 3),
        "empty" => (0, 0, 1),
        "punch" | "zero" => (8, 2, 4),
        "allocate" => (4, 1, 2),
        "collapse" | "insert" => (3, 1, 2),
        "sync" => (2, 1, 2),
        "hold" | "let-go" => (0, 1, 3),
        "map" => (6, 2, 4),
        "unmap" => (4, 2, 3),
        "load" => (20, 4, 8),
        "store" => (30, 6, 10),
        _ => (0, 0, 0),
    };
    match by {
        By::Cache => cache,
        By::Own => own,
        By::Foreign => foreign,
    }
}

fn act_weight(word: &str) -> u64 {
    match word {
        "pin" | "release" => 25,
        "device-load" => 15,
        "device-store" | "see" | "stint" => 40,
        "view" => 8,
        "poke" => 15,
        "prefetch" | "evict" | "flush" => 6,
        "reopen" => 1,
        _ => 0,
    }
}

impl Default for Weights {
    fn default() -> Weights {
        let accesses = By::ALL.iter().flat_map(|by| {
            Access::WORDS.iter().map(|word| (kind(*by, word), access_weight(*by, word)))
        });
        let acts = Act::WORDS.iter().map(|word| ((*word).into(), act_weight(word)));
        let mut weights: BTreeMap<String, u64> = accesses.chain(acts).collect();
        weights.insert("restart".into(), 1);
        Weights(weights)
    }
}

impl Weights {
    /// `kind=n,...`; `cache`, `own` and `foreign` stand for all of theirs.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub(crate) fn change(&mut self, text: &str) -> Result<(), String> {
        for pair in text.split(',') {
            let (name, n) = pair.split_once('=').ok_or(format!("'{pair}' is not kind=number"))?;
            let n: u32 = n.parse().map_err(|_| format!("'{n}' is no weight (0 to 4294967295)"))?;
            let group = By::ALL.iter().any(|by| by.name() == name);
            let all = if group { format!("{name}-") } else { name.into() };
            let chosen = |k: &str| if group { k.starts_with(&all) } else { *k == all };
            let mut found = false;
            for (_, weight) in self.0.iter_mut().filter(|(k, _)| chosen(k)) {
                (*weight, found) = (u64::from(n), true);
            }
            if !found {
                let all = kinds().join(", ");
                return Err(format!("'{name}' is no kind of operation; there are: {all}"));
            }
        }
        Ok(())
    }

    /// Nobody but the cache changes anything.
    pub(crate) fn no_outsiders(&mut self) {
        let keeps = |k: &str| ["read", "map", "unmap", "load"].iter().any(|w| k.ends_with(w));
        for (kind, weight) in &mut self.0 {
            if (kind.starts_with("own-") || kind.starts_with("foreign-")) && !keeps(kind) {
                *weight = 0;
            }
        }
    }

    /// Outsiders map nothing.
    pub(crate) fn no_outside_maps(&mut self) {
        for by in [By::Own, By::Foreign] {
            self.0.insert(kind(by, "map"), 0);
        }
    }

    /// The cache's users map nothing.
    pub(crate) fn no_maps(&mut self) {
        self.0.insert(kind(By::Cache, "map"), 0);
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// The kind at a place below the total.
    pub(crate) fn pick(&self, mut at: u64) -> &str {
        for (kind, weight) in &self.0 {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return kind,
            }
        }
        "check"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_kinds() {
        let mut weights = Weights::default();
        weights.change("foreign=0,own=0,foreign-read=7,pin=1").unwrap();
        assert_eq!((weights.0["foreign-read"], weights.0["foreign-write"]), (7, 0));
        assert_eq!((weights.0["pin"], weights.0["own-store"]), (1, 0));
        for wrong in ["", "pin", "pin=", "pin=-1", "pins=1", "cache-=1"] {
            assert!(weights.change(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_zero_is_never_picked() {
        let mut weights = Weights::default();
        weights.change("cache=0").unwrap();
        assert!((0..weights.total()).all(|at| !weights.pick(at).starts_with("cache-")));
    }
}
