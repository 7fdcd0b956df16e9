//! What C holds: numbers that look like pointers to nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use crate::border::{Failure, Result};

/// Tables are split, so that threads seldom wait for each other.
const SHARDS: usize = 16;
/// No address of a program has only the highest of its bits set: who follows such a pointer faults, always.
const MARK: usize = 1 << (usize::BITS - 1);

/// No number is given twice, to whatever kind: one that has been closed is never something else.
static NEXT: AtomicUsize = AtomicUsize::new(1);

/// The live handles of one kind: `C` is what they are called in C.
pub(crate) struct Table<C, T> {
    what: &'static str,
    shards: [RwLock<BTreeMap<usize, Arc<T>>>; SHARDS],
    _in_c: std::marker::PhantomData<fn(*mut C)>,
}

impl<C, T> Table<C, T> {
    pub(crate) const fn new(what: &'static str) -> Table<C, T> {
        let shards = [const { RwLock::new(BTreeMap::new()) }; SHARDS];
        Table { what, shards, _in_c: std::marker::PhantomData }
    }

    fn shard(&self, number: usize) -> &RwLock<BTreeMap<usize, Arc<T>>> {
        &self.shards[number % SHARDS]
    }

    /// A handle for something new.
    pub(crate) fn add(&self, it: T) -> *mut C {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.shard(number).write().insert(number, Arc::new(it));
        std::ptr::without_provenance_mut(MARK | number)
    }

    fn number(&self, handle: *const C) -> Result<usize> {
        let what = self.what;
        match handle.addr() {
            0 => Err(Failure::invalid(format!("the {what} is NULL"))),
            addr if addr & MARK == 0 => Err(self.unknown()),
            addr => Ok(addr & !MARK),
        }
    }

    fn unknown(&self) -> Failure {
        Failure::invalid(format!("no such {}: it was closed, or never was one", self.what))
    }

    /// What a handle stands for; it stays as long as the caller uses it.
    pub(crate) fn get(&self, handle: *const C) -> Result<Arc<T>> {
        let number = self.number(handle)?;
        self.shard(number).read().get(&number).cloned().ok_or_else(|| self.unknown())
    }

    /// Ends a handle.
    pub(crate) fn take(&self, handle: *const C) -> Result<Arc<T>> {
        let number = self.number(handle)?;
        self.shard(number).write().remove(&number).ok_or_else(|| self.unknown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_handle_is_refused() {
        let numbers: Table<u8, u32> = Table::new("number");
        let words: Table<u16, &str> = Table::new("word");
        let seven = numbers.add(7);
        assert_eq!(*numbers.get(seven).ok().unwrap(), 7);
        assert!(words.get(seven.cast()).is_err());
        assert!(numbers.get(std::ptr::null()).is_err());
        assert!(numbers.get(&0).is_err());
        assert_eq!(*numbers.take(seven).ok().unwrap(), 7);
        assert!(numbers.get(seven).is_err() && numbers.take(seven).is_err());
        assert_ne!(numbers.add(8), seven);
    }
}
