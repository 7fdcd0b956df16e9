use super::*;
use loom::sync::Arc;
use loom::thread;

fn unlock(page: &PageState, hold: Hold) {
    // SAFETY: the tests keep count.
    unsafe { page.unlock(hold) };
}

/// A store that succeeded is in exactly one of the answers.
#[test]
fn no_store_is_lost() {
    loom::model(|| {
        let page = Arc::new(PageState::new());
        page.protect(Some(Access::Write));
        let kernel = {
            let page = Arc::clone(&page);
            thread::spawn(move || {
                let stored = page.access(Access::Write).is_ok();
                if stored {
                    unlock(&page, Hold::Exclusive);
                }
                stored
            })
        };
        let early = page.take_dirty();
        let stored = kernel.join().unwrap();
        let late = page.take_dirty();
        assert_eq!(stored, early | late);
        assert!(!(early && late));
    });
}

/// An exclusive holder is alone; what it wrote is seen by the next.
#[test]
fn the_lock_excludes() {
    loom::model(|| {
        let page = Arc::new((PageState::new(), loom::cell::UnsafeCell::new(0u32)));
        let add = |page: &(PageState, loom::cell::UnsafeCell<u32>)| {
            page.0.lock(Hold::Exclusive);
            // SAFETY: the page's writer lock is held; loom checks that it excludes.
            page.1.with_mut(|v| unsafe { *v += 1 });
            unlock(&page.0, Hold::Exclusive);
        };
        let other = {
            let page = Arc::clone(&page);
            thread::spawn(move || add(&page))
        };
        add(&page);
        other.join().unwrap();
        page.0.lock(Hold::Shared);
        // SAFETY: a reader lock is held.
        page.1.with(|v| assert_eq!(unsafe { *v }, 2));
        unlock(&page.0, Hold::Shared);
    });
}

/// A writer draws a number while a reader holds the page, who then wants it again and has to draw one
/// behind: both get through (loom finds who would wait for ever), and no number stays out.
#[test]
fn everybodys_turn_comes() {
    loom::model(|| {
        let page = Arc::new((PageState::new(), loom::cell::UnsafeCell::new(0u32)));
        page.0.lock(Hold::Shared);
        let writer = {
            let page = Arc::clone(&page);
            thread::spawn(move || {
                page.0.lock(Hold::Exclusive);
                // SAFETY: the writer lock is held.
                page.1.with_mut(|v| unsafe { *v = 1 });
                unlock(&page.0, Hold::Exclusive);
            })
        };
        unlock(&page.0, Hold::Shared);
        page.0.lock(Hold::Shared);
        // SAFETY: a reader lock is held.
        page.1.with(|v| assert!(unsafe { *v } <= 1));
        unlock(&page.0, Hold::Shared);
        writer.join().unwrap();
        let state = page.0.0.load(Ordering::Relaxed);
        assert_eq!((state & LOCK, next(state)), (0, turn(state)));
    });
}

/// When permission has been taken away, nobody is inside who had it.
#[test]
fn a_lowered_permission_waits_for_those_inside() {
    loom::model(|| {
        let page = Arc::new((PageState::new(), loom::cell::UnsafeCell::new(0u32)));
        page.0.protect(Some(Access::Write));
        let kernel = {
            let page = Arc::clone(&page);
            thread::spawn(move || {
                if page.0.access(Access::Write).is_ok() {
                    // SAFETY: the writer lock is held.
                    page.1.with_mut(|v| unsafe { *v += 1 });
                    unlock(&page.0, Hold::Exclusive);
                }
            })
        };
        page.0.protect(None);
        // SAFETY: nobody else gets in any more, and loom checks that nobody is.
        page.1.with_mut(|v| unsafe { *v += 1 });
        kernel.join().unwrap();
    });
}
