use super::*;
use std::sync::mpsc;
use std::time::Duration;

fn unlock(page: &PageState, hold: Hold) {
    // SAFETY: the tests keep count.
    unsafe { page.unlock(hold) };
}

/// Runs what shall end within a minute, and fails if it does not.
fn bounded(body: impl FnOnce() + Send + 'static) {
    let (tell, told) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        body();
        let _ = tell.send(());
    });
    if told.recv_timeout(Duration::from_secs(60)) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("hangs");
    }
    thread.join().unwrap();
}

fn page(access: Access) -> &'static PageState {
    let page = Box::leak(Box::new(PageState::new()));
    page.protect(Some(access));
    page
}

#[test]
fn permissions_are_checked_before_the_page_is_touched() {
    let page = PageState::new();
    assert_eq!(page.access(Access::Read), Err(FaultReason::NotPresent));
    page.protect(Some(Access::Read));
    assert_eq!(page.access(Access::Write), Err(FaultReason::ReadOnly));
    assert_eq!(page.access(Access::Read), Ok(()));
    unlock(&page, Hold::Shared);
    page.protect(Some(Access::Write));
    assert!(!page.take_dirty(), "nobody stored");
    page.protect(Some(Access::Write));
    assert_eq!(page.access(Access::Write), Ok(()));
    unlock(&page, Hold::Exclusive);
    assert!(page.take_dirty());
    assert!(!page.take_dirty());
    assert_eq!(page.access(Access::Write), Err(FaultReason::ReadOnly));
}

/// Each of these waited for every access under way.
#[test]
fn what_takes_no_permission_away_does_not_wait() {
    bounded(|| {
        let page = page(Access::Read);
        page.lock(Hold::Shared);
        page.protect(Some(Access::Read));
        page.protect(Some(Access::Write));
        page.protect(Some(Access::Read));
        assert!(!page.take_dirty());
        unlock(page, Hold::Shared);
        page.lock(Hold::Exclusive);
        page.protect(Some(Access::Write));
        unlock(page, Hold::Exclusive);
        page.protect(None);
        page.lock(Hold::Exclusive);
        page.protect(None);
        page.protect(Some(Access::Read));
        unlock(page, Hold::Exclusive);
        assert_eq!(page.access(Access::Read), Ok(()));
    });
}

/// Readers that follow each other without a gap kept a writer out for ever, and whoever takes a
/// permission away.
#[test]
fn whoever_waits_goes_before_those_who_come_later() {
    bounded(|| {
        let page = page(Access::Read);
        let order: &_ = Box::leak(Box::new(std::sync::Mutex::new(Vec::new())));
        page.lock(Hold::Shared);
        let mut threads = Vec::new();
        for (n, hold) in [Hold::Exclusive, Hold::Shared, Hold::Exclusive].into_iter().enumerate() {
            threads.push(std::thread::spawn(move || {
                page.lock(hold);
                order.lock().unwrap().push(n);
                unlock(page, hold);
            }));
            while page.waiting() as usize <= n {
                std::thread::yield_now();
            }
        }
        unlock(page, Hold::Shared);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
        assert_eq!((page.waiting(), page.0.load(Ordering::Relaxed) & LOCK), (0, 0));
    });
}

#[test]
fn more_than_there_are_numbers_get_through() {
    bounded(|| {
        let page = page(Access::Write);
        page.lock(Hold::Exclusive);
        let threads: Vec<_> = (0..300)
            .map(|n| {
                std::thread::spawn(move || {
                    let hold = if n % 3 == 0 { Hold::Exclusive } else { Hold::Shared };
                    page.lock(hold);
                    unlock(page, hold);
                })
            })
            .collect();
        while page.waiting() < 255 {
            std::thread::yield_now();
        }
        unlock(page, Hold::Exclusive);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!((page.waiting(), page.0.load(Ordering::Relaxed) & LOCK), (0, 0));
    });
}
