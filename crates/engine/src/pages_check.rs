//! The invariants of [`Pages`].

use super::*;

impl Pages {
    /// Checks the type's invariants; the message names what is broken.
    pub(crate) fn check(&self) -> Result<(), String> {
        let bits = (self.frame_bytes / PAGE_BYTES) as u32;
        for (&folio, f) in &self.folios {
            let file = clip(&self.folio_span(folio), &(0..self.limit()));
            let inside = self.bits(folio, &file);
            if f.valid.any(inside.end..bits) {
                return Err(format!("folio {folio}: valid pages past end of file {}", self.bytes));
            }
            if let Some(d) = &f.dirty {
                if d.any(inside.end..bits) {
                    return Err(format!(
                        "folio {folio}: dirty pages past end of file {}",
                        self.bytes
                    ));
                }
                if !d.any(0..bits) {
                    return Err(format!("folio {folio}: an empty dirty bitmap is kept"));
                }
            }
            if f.dirty.is_some() != self.dirty.contains(&folio) {
                return Err(format!("folio {folio}: its dirtiness disagrees with the set"));
            }
            let full = !inside.is_empty() && f.valid.all(inside);
            if full != self.full.get(folio).is_some() {
                return Err(format!("folio {folio}: full={full} disagrees with the set"));
            }
        }
        let valid: u64 = self.folios.values().map(|f| f.valid.count(0..bits)).sum();
        if valid != self.valid_pages {
            return Err(format!("{valid} pages are valid, {} counted", self.valid_pages));
        }
        for (range, ()) in self.partial.iter() {
            if range.end > self.bytes {
                return Err(format!("partial {range:?} past end of file {}", self.bytes));
            }
            for page in (floor(range.start)..range.end).step_by(PAGE_BYTES as usize) {
                let folio = self.folio_of(page);
                let bit = ((page - folio * self.frame_bytes) / PAGE_BYTES) as u32;
                let dirty = self.folios.get(&folio).and_then(|f| f.dirty.as_ref());
                if !dirty.is_some_and(|d| d.get(bit)) {
                    return Err(format!("partial {range:?} on a clean page {page:#x}"));
                }
                if self.partial.covers(page..page + PAGE_BYTES) {
                    return Err(format!("page {page:#x} is partial in all its bytes"));
                }
            }
        }
        if self.full.iter().any(|(r, ())| r.into_iter().any(|f| !self.folios.contains_key(&f))) {
            return Err("a full folio has no frame".into());
        }
        Ok(())
    }
}
