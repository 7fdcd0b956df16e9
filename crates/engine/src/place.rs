//! Where pages are, without moving them.

use std::ops::Range;

use crate::pages::{clip, page_span};
use crate::range::RangeMap;
use crate::{Engine, FileKey, PageState, Placement};

impl<E: Clone> Engine<E> {
    /// The placement of a range's bytes inside the file.
    pub(crate) fn placement(&self, file: FileKey, range: &Range<u64>) -> Vec<Placement> {
        let Some(state) = self.files.get(&file) else { return Vec::new() };
        let range = clip(range, &(0..state.pages.bytes()));
        let mut map: RangeMap<(PageState, bool)> = RangeMap::new();
        let mut put = |run: Range<u64>, state| map.insert(clip(&run, &range), (state, false));
        put(range.clone(), PageState::Home);
        for run in state.pages.valid_runs(&range) {
            put(run, PageState::Copy);
        }
        for run in state.pages.dirty_runs(&page_span(&range)) {
            put(page_span(&run), PageState::Away);
        }
        for (_, pin) in state.pins.writers_over(&page_span(&range)) {
            for (run, ()) in pin.stored.overlaps(pin.live_pages()) {
                put(run, PageState::Away);
            }
        }
        for (_, pin) in state.pins.over(&range) {
            let held: Vec<_> = map
                .overlaps(clip(&range, &pin.live()))
                .map(|(run, (state, _))| (run, *state))
                .collect();
            for (run, state) in held {
                map.insert(run, (state, true));
            }
        }
        map.iter()
            .map(|(range, (state, pinned))| Placement { range, state: *state, pinned: *pinned })
            .collect()
    }
}
