//! The thread that reads a userfaultfd's events, for tests.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pageferry_linux::{Event, Fault, Uffd, UffdMode, Wakeup};

/// Reads until it is dropped and passes faults on.
pub(crate) struct Reader {
    pub(crate) uffd: Arc<Uffd>,
    faults: Mutex<Receiver<Fault>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Reads a userfaultfd of the given mode, if it is to be had.
    pub(crate) fn start(mode: UffdMode) -> Option<Reader> {
        let uffd = match Uffd::open_mode(mode) {
            Ok(uffd) => Arc::new(uffd),
            Err(e) => {
                println!("skipped: no {mode:?} userfaultfd: {e}");
                return None;
            }
        };
        let (tell, faults) = channel();
        let reads = Arc::clone(&uffd);
        let thread = std::thread::spawn(move || {
            let mut events = Vec::new();
            while reads.wait(&mut events, None).expect("read events") == Wakeup::Events {
                for event in &events {
                    if let Event::Fault(fault) = event {
                        let _ = tell.send(*fault);
                    }
                }
            }
        });
        Some(Reader { uffd, faults: Mutex::new(faults), thread: Some(thread) })
    }

    /// Either kind, the more capable first.
    pub(crate) fn any() -> Option<Reader> {
        let mode = match Uffd::open() {
            Ok(uffd) => uffd.mode(),
            Err(e) => {
                println!("skipped: {e}");
                return None;
            }
        };
        Reader::start(mode)
    }

    /// The next fault.
    pub(crate) fn fault(&self) -> Fault {
        self.fault_within(Duration::from_secs(20)).expect("a fault within 20 s")
    }

    /// The next fault, if there is one in time.
    pub(crate) fn fault_within(&self, time: Duration) -> Option<Fault> {
        self.faults.lock().expect("lock").recv_timeout(time).ok()
    }

    /// How many faults have been told and not looked at.
    pub(crate) fn count(&self) -> usize {
        self.faults.lock().expect("lock").try_iter().count()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.uffd.stop().expect("stop");
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the reader died");
        }
    }
}
