//! Nobody sees a page half written.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pageferry_device::{Device, FrameSpan, PAGE_BYTES};
use pageferry_soft::Window;

use crate::child;
use crate::common::{FRAME, PAGE, PAGES, Served, serial, window};

const FILLS: u64 = 20_000;

/// Fills the frame again and again, every word of it with one number.
fn fill_with_numbers(served: &Served) {
    for number in 1..=FILLS {
        let span = FrameSpan { frame: served.frame, offset: 0, len: FRAME };
        let source = &mut |bytes: &mut [u8]| {
            for word in bytes.as_chunks_mut::<8>().0 {
                *word = number.to_ne_bytes();
            }
            Ok(())
        };
        served.device.fill(span, source).expect("fill");
        // A breath between two, as a reader needs one.
        (0..200).for_each(|_| std::hint::spin_loop());
    }
}

/// The number that is in all words.
fn number(page: &[u8]) -> u64 {
    let words = page.as_chunks::<8>().0;
    assert!(words.iter().all(|word| *word == words[0]), "a torn page");
    u64::from_ne_bytes(words[0])
}

/// Loads until the last number is there, and tells how often.
fn load_numbers(window: &Window) -> u64 {
    let mut buf = vec![0; FRAME as usize];
    let (mut loads, mut last) = (0, [0; PAGES as usize]);
    while last != [FILLS; PAGES as usize] {
        window.load(0, &mut buf).expect("load");
        for (page, last) in buf.chunks(PAGE).zip(&mut last) {
            let now = number(page);
            assert!(now >= *last, "an older page after a newer one");
            *last = now;
        }
        loads += 1;
    }
    loads
}

#[test]
fn loads_beside_fills_are_never_torn() {
    let served = Served::full(0);
    let memory = served.export().memory;
    thread::scope(|scope| {
        let fills = scope.spawn(|| fill_with_numbers(&served));
        let readers = [false, true].map(|stores| {
            let window = window(&memory, FRAME, stores);
            scope.spawn(move || load_numbers(&window))
        });
        let loads = readers.map(|reader| reader.join().expect("reader"));
        fills.join().expect("fills");
        println!("{FILLS} fills, {loads:?} loads");
    });
}

#[test]
fn another_processes_loads_are_never_torn_either() {
    let served = Served::full(0);
    let memory = served.export().memory;
    let ended = thread::scope(|scope| {
        let fills = scope.spawn(|| fill_with_numbers(&served));
        let ended = child::fork(|| {
            let window = window(&memory, FRAME, false);
            println!("{FILLS} fills, {} loads", load_numbers(&window));
            0
        });
        fills.join().expect("fills");
        ended
    });
    assert_eq!(ended, Ok(0));
}

/// The first store to a page copies it: whole, and of one moment.
#[test]
fn first_stores_beside_fills_are_never_torn() {
    let served = Served::full(0);
    let memory = served.export().memory;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            fill_with_numbers(&served);
            done.store(true, Ordering::SeqCst);
        });
        let mut page = vec![0; PAGE];
        let mut rounds = 0;
        let window = window(&memory, FRAME, true);
        while !done.load(Ordering::SeqCst) {
            // Every page is the device's again.
            if rounds % 2 == 0 {
                window.detach(0);
            }
            window.attach(0, memory.as_fd(), serial(&memory, FRAME)).expect("attach");
            for at in (0..FRAME).step_by(PAGE) {
                window.store(at + PAGE_BYTES / 2, &[0xff; 8]).expect("store");
                window.load(at, &mut page).expect("load");
                assert_eq!(page[PAGE / 2..][..8], [0xff; 8]);
                page.copy_within(..8, PAGE / 2);
                number(&page);
            }
            rounds += 1;
        }
        println!("{rounds} rounds");
    });
}

/// Threads of one process that store to a page are kept apart.
#[test]
fn stores_and_loads_of_threads_are_never_torn() {
    let served = Served::full(0);
    let window = window(served.export().memory, FRAME, true);
    let left = std::sync::atomic::AtomicU32::new(3);
    thread::scope(|scope| {
        for thread in 1..=3u64 {
            let (window, left) = (&window, &left);
            scope.spawn(move || {
                for round in 0..2000 {
                    let bytes = (round * 4 + thread).to_ne_bytes().repeat(PAGE / 8);
                    window.store(3 * PAGE_BYTES, &bytes).expect("store");
                }
                left.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let mut page = vec![0; PAGE];
        while left.load(Ordering::SeqCst) > 0 {
            window.load(3 * PAGE_BYTES, &mut page).expect("load");
            number(&page);
        }
    });
}
