//! What the virtual threads come to want, and what others do to the files meanwhile.

use std::ops::Range;

use pageferry_engine::{FileKey, MapKey, Mode, PAGE_BYTES, Request};

use crate::actors::{Task, Want, World};
use crate::twins::{CELL, FILE_MAX, FRAME, TwinMap, cells};

impl World {
    pub fn ask(&mut self, actor: usize, request: Request, patient: bool, want: Want) {
        let text = format!("{request:?}");
        let op = self.engine.submit(request, Some(actor as u64), patient);
        self.say(|| format!("{actor} asks {op:?} {text}"));
        self.actors[actor] = Task::Asked { op, want };
    }

    fn any_file(&mut self) -> FileKey {
        let at = self.dice.roll(self.twins.files.len() as u64) as usize;
        *self.twins.files.keys().nth(at).expect("there are files")
    }

    /// A range of cells inside the file, mostly small.
    fn any_range(&mut self, file: FileKey) -> Option<Range<u64>> {
        let count = self.twins.files[&file].bytes / CELL;
        if count == 0 {
            return None;
        }
        let start = self.dice.roll(count);
        let len = if self.dice.roll(4) == 0 { self.dice.roll(30) } else { self.dice.roll(9) } + 1;
        Some(start * CELL..(start + len).min(count) * CELL)
    }

    pub fn begin(&mut self, actor: usize) {
        let file = self.any_file();
        if self.wants().any(|(f, want)| f == file && matches!(want, Want::Close { .. })) {
            return;
        }
        let Some(range) = self.any_range(file) else { return self.begin_resize(actor, file) };
        let patient = self.dice.roll(5) > 0;
        match self.dice.roll(25) {
            0..=3 => {
                let floors = self.model.floors(file, &range);
                let want = Want::Pin { file, range: range.clone(), mode: Mode::Read, floors };
                self.ask(actor, Request::Pin { file, range, mode: Mode::Read }, patient, want);
            }
            4..=8 if self.model.is_free(file, &range) => {
                self.model.claim(file, &range, true);
                let mode = if self.dice.roll(3) == 0 { Mode::Overwrite } else { Mode::Write };
                let floors = self.model.floors(file, &range);
                let want = Want::Pin { file, range: range.clone(), mode, floors };
                self.ask(actor, Request::Pin { file, range, mode }, patient, want);
            }
            9..=10 => self.begin_change(actor, file, range),
            11 => self.begin_resize(actor, file),
            12..=13 => {
                let floors = self.model.floors(file, &range);
                let want = Want::Read { file, range: range.clone(), floors };
                self.ask(actor, Request::Flush { file, range, skip_pinned: false }, true, want);
            }
            14 => self.ask(
                actor,
                Request::Flush { file, range, skip_pinned: true },
                true,
                Want::Other { file },
            ),
            15..=16 => {
                let want = Want::Other { file };
                self.ask(actor, Request::Evict { file, range }, true, want);
            }
            17 => {
                let want = Want::Other { file };
                self.ask(actor, Request::Query { file, range }, true, want);
            }
            18 => self.begin_map(actor, file),
            19 => self.begin_close(actor, file),
            _ => self.begin_touch(actor, file, range.start),
        }
    }

    fn begin_resize(&mut self, actor: usize, file: FileKey) {
        let old = self.twins.files[&file].bytes;
        let bytes = self.dice.roll(5 * FRAME / CELL) * CELL;
        // Two at once on one file would leave the order of their effects open.
        if self.wants().any(|(f, want)| f == file && matches!(want, Want::Resize { .. })) {
            return;
        }
        for at in (bytes.min(old)..FILE_MAX).step_by(CELL as usize) {
            self.model.begin(file, at, 0);
        }
        self.ask(actor, Request::Resize { file, bytes }, true, Want::Resize { file, bytes, old });
    }

    /// A write inside the file or beyond its end, or a change of all that lies behind.
    fn begin_change(&mut self, actor: usize, file: FileKey, range: Range<u64>) {
        let bytes = self.twins.files[&file].bytes;
        let (range, asked, resizes, value) = match self.dice.roll(6) {
            0 => {
                let end = (range.end + self.dice.roll(12) * CELL).min(FILE_MAX);
                let range = range.start..end;
                (range.clone(), range, true, self.value())
            }
            1 => (range.start..bytes.max(range.end), range.start..u64::MAX, true, 0),
            _ => (range.clone(), range, false, self.value()),
        };
        let behind = range.start..if asked.end == u64::MAX { FILE_MAX } else { range.end };
        // What somebody else is given at the same time would leave the order open.
        let cuts = |w: &Want| matches!(w, Want::Resize { .. });
        let cut = self.wants().any(|(f, want)| f == file && cuts(want));
        if !self.model.is_free(file, &behind) || value == 0 && cut {
            return;
        }
        self.model.claim(file, &behind, true);
        let want = Want::Write { file, range, claimed: behind, value };
        self.ask(actor, Request::Change { file, range: asked, resizes }, true, want);
    }

    fn begin_map(&mut self, actor: usize, file: FileKey) {
        let maps: Vec<MapKey> = self.twins.files[&file].maps.keys().copied().collect();
        let ends = |w: &Want| matches!(w, Want::Unmap { .. });
        let ending = self.wants().any(|(f, want)| f == file && ends(want));
        if maps.len() < 2 {
            let map = MapKey(self.next_map);
            self.next_map += 1;
            let start = self.dice.roll(8) * PAGE_BYTES;
            let range = start..start + (self.dice.roll(12) + 1) * PAGE_BYTES;
            let writable = self.is_writable(map);
            let request = Request::MapIn { file, map, range, writable };
            self.ask(actor, request, true, Want::Other { file });
        } else if !ending {
            let want = Want::Unmap { file, map: maps[0] };
            self.ask(actor, Request::MapOut { file, map: maps[0] }, true, want);
        }
    }

    /// Every third mapping is read-only.
    pub fn is_writable(&self, map: MapKey) -> bool {
        !map.0.is_multiple_of(3)
    }

    /// What everybody is at, with the file it is about.
    fn wants(&self) -> impl Iterator<Item = (FileKey, &Want)> {
        self.actors.iter().filter_map(|task| match task {
            Task::Asked { want, .. } => Some((want.file(), want)),
            _ => None,
        })
    }

    /// Closes a file that nobody uses; once closed it is opened anew.
    fn begin_close(&mut self, actor: usize, file: FileKey) {
        let held = |t: &Task| matches!(t, Task::Holding { file: f, .. } if *f == file);
        let used = self.actors.iter().any(held) || self.wants().any(|(f, _)| f == file);
        if !used && self.twins.files[&file].maps.is_empty() {
            self.ask(actor, Request::Close { file }, true, Want::Close { file });
        }
    }

    pub fn closed(&mut self, file: FileKey) {
        let twin = self.twins.files.remove(&file).expect("a known file");
        assert!(twin.attached.is_empty(), "a closed file has frames");
        let key = self.engine.add_file(twin.observe(0));
        self.twins.files.insert(key, twin);
        self.model.rename(file, key);
    }

    /// Somebody we know nothing of changes a file, beside whatever we do; not what somebody here is
    /// writing, or has kept away, which would leave the order open.
    pub fn outsider(&mut self) {
        let file = self.any_file();
        let resizes = |w: &Want| matches!(w, Want::Resize { .. } | Want::Write { .. });
        let ours = self.wants().any(|(f, want)| f == file && resizes(want));
        let bytes = self.dice.roll(5 * FRAME / CELL) * CELL;
        let free = |w: &World, range: &Range<u64>| {
            let pages =
                range.start / PAGE_BYTES * PAGE_BYTES..range.end.next_multiple_of(PAGE_BYTES);
            w.model.is_free(file, range) && !w.engine.is_away(file, &pages)
        };
        let told = self.dice.roll(2) == 0;
        match (self.dice.roll(6), self.any_range(file)) {
            (0, _) if !ours && free(self, &(bytes..FILE_MAX)) => {
                self.say(|| format!("an outsider sets the size of {file:?} to {bytes}"));
                let twin = self.twins.files.get_mut(&file).expect("a known file");
                let gone = bytes.min(twin.bytes)..FILE_MAX;
                // What it does to the page of the old or new end is known with the size.
                let known = gone.start / PAGE_BYTES * PAGE_BYTES..FILE_MAX;
                twin.resize(bytes);
                twin.changed(told.then_some(known));
                self.give(file, &gone, 0);
            }
            (1.., Some(range)) if !ours && free(self, &range) => {
                self.say(|| format!("an outsider writes {range:?} of {file:?}"));
                let value = self.value();
                let twin = self.twins.files.get_mut(&file).expect("a known file");
                twin.cells[cells(&range)].fill(value);
                twin.changed(told.then(|| range.clone()));
                self.give(file, &range, value);
            }
            _ => {}
        }
    }

    /// Cells have a value at once.
    fn give(&mut self, file: FileKey, range: &Range<u64>, value: u32) {
        for at in (range.start..range.end).step_by(CELL as usize) {
            self.model.begin(file, at, value);
            self.model.complete(file, at, value);
        }
    }

    /// A CPU access through a mapping: at once if nothing traps it.
    fn begin_touch(&mut self, actor: usize, file: FileKey, at: u64) {
        let inside = |m: &TwinMap| m.range.contains(&at);
        let found = self.twins.files[&file].maps.iter().find(|(_, m)| inside(m));
        let Some((&map, twin)) = found else { return };
        let cell = at..at + CELL;
        let stores = twin.writable && self.dice.roll(2) == 0 && self.model.is_free(file, &cell);
        let store = stores.then(|| {
            self.model.claim(file, &cell, true);
            self.value()
        });
        let floor = self.model.floors(file, &cell)[0];
        self.touch(actor, file, map, at, store, floor);
    }

    pub fn touch(
        &mut self,
        actor: usize,
        file: FileKey,
        map: MapKey,
        at: u64,
        store: Option<u32>,
        floor: usize,
    ) {
        let cell = at..at + CELL;
        // Whoever ends a mapping accesses it no more.
        let ends = |w: &Want| matches!(w, Want::Unmap { map: ending, .. } if *ending == map);
        let ending = self.wants().any(|(_, want)| ends(want));
        let twin = self.twins.files.get_mut(&file).expect("a known file");
        let (page, index) = (at / PAGE_BYTES, (at / CELL) as usize);
        let gone = ending || at >= twin.bytes || !twin.maps.contains_key(&map);
        if gone {
            // SIGBUS, or unmapped: no access.
            return if store.is_some() {
                self.model.claim(file, &cell, false)
            };
        }
        let mapping = twin.maps.get_mut(&map).expect("checked");
        if mapping.trapped.contains(&page) {
            let want = Want::Touch { file, map, at, store, floor };
            return self.ask(actor, Request::Touch { file, at }, true, want);
        }
        match store {
            Some(value) => {
                mapping.stored.insert(page);
                twin.cells[index] = value;
                self.model.begin(file, at, value);
                self.model.complete(file, at, value);
                self.model.claim(file, &cell, false);
            }
            None => {
                let seen = twin.cells[index];
                self.model.judge(file, at, floor, seen, "a load through a mapping");
            }
        }
    }
}
