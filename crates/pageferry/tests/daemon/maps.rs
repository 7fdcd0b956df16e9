//! Clients that have mapped files, and do not answer as they should when they are asked about it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clumsy::clumsy;
use crate::common::*;
use crate::raw::*;
use pageferry_linux::{Received, Socket};
use pageferry_wire::*;

/// A client with mappings of all of a file.
struct Mapper {
    raw: Raw,
    file: FileId,
    /// Where it is asked.
    asked: Socket,
}

impl Mapper {
    fn new(d: &Daemon, path: &Path) -> Mapper {
        let mut raw = d.client();
        let file = raw.open(path, true);
        let (reply, came) = raw.call(Request::Callbacks, &[]).unwrap();
        assert!(matches!(reply, Reply::Done));
        let asked = Socket::received(came.into_iter().next().unwrap()).unwrap();
        Mapper { raw, file, asked }
    }

    /// Nothing of the file is on the device: nothing is asked.
    fn map(&mut self, map: u64) {
        let (map, span) = (MapId(map), span(0..FILE));
        let mapped = self.raw.ask(Request::MapIn { map, file: self.file, span, writable: true });
        assert!(matches!(mapped, Ok(Reply::Done)), "{mapped:?}");
    }

    /// The daemon's own description of the file.
    fn lent(&mut self) -> OwnedFd {
        let (_, lent) = self.raw.call(Request::Description { file: self.file }, &[]).unwrap();
        lent.into_iter().next().expect("a description")
    }
}

/// Answers what is asked, each after a time, until the daemon hangs up or that is no more to be.
fn answers(asked: Socket, after: Duration, told: Told, until: &Arc<AtomicBool>) -> JoinHandle<u32> {
    let until = Arc::clone(until);
    asked.set_receive_timeout(Some(Duration::from_millis(20))).unwrap();
    std::thread::spawn(move || {
        let mut times = 0;
        while !until.load(Ordering::SeqCst) {
            let mut packet = vec![0; MESSAGE_BYTES_MAX];
            match asked.recv(&mut packet, &mut Vec::new(), 0) {
                Ok(Received::Packet(_)) => times += 1,
                Ok(_) => break,
                Err(_) => continue,
            }
            std::thread::sleep(after);
            let _ = asked.send(&encode_told(&told).unwrap(), &[]);
        }
        times
    })
}

/// Another client pins what is mapped, for writing and for reading.
fn pins(d: &Daemon, path: &Path) {
    let mut other = d.client();
    let file = other.open(path, true);
    for mode in [Mode::Write, Mode::Read] {
        let pin = other.pin(file, 0..FRAME, mode).unwrap();
        other.release(pin).unwrap();
    }
}

/// Each answer comes in time, but all together they are too many for the pin that waits for them.
#[test]
fn a_client_slow_to_answer_for_many_mappings_is_hung_up_on() {
    alone(120, || {
        let d = daemon(16);
        let path = d.file("a");
        let mut slow = Mapper::new(&d, &path);
        (0..6).for_each(|map| slow.map(map));
        let over = Arc::new(AtomicBool::new(false));
        let answered = answers(slow.asked, Duration::from_secs(2), Told::Done(None), &over);
        pins(&d, &path);
        until("its end", || d.server().sessions() == 0);
        over.store(true, Ordering::SeqCst);
        assert!(answered.join().unwrap() > 0, "it was asked nothing");
        drop(slow.raw);
        d.ends_clean();
    });
}

/// So slow, and slower, is nobody hung up on who answers each in time and is not asked so much at once.
#[test]
fn a_client_slow_to_answer_for_one_mapping_stays() {
    alone(120, || {
        let d = daemon(16);
        let path = d.file("a");
        let mut slow = Mapper::new(&d, &path);
        slow.map(0);
        let over = Arc::new(AtomicBool::new(false));
        let answered = answers(slow.asked, Duration::from_secs(1), Told::Done(None), &over);
        for _ in 0..3 {
            pins(&d, &path);
        }
        over.store(true, Ordering::SeqCst);
        assert!(answered.join().unwrap() > 5, "it was asked too little to tell");
        slow.raw.ask(Request::Stats).unwrap();
        drop(slow.raw);
        d.ends_clean();
    });
}

/// The daemon's limit of time is that of its own end, whatever the client does to the other.
#[test]
fn a_client_that_waits_for_ever_does_not_make_the_daemon_wait() {
    alone(60, || {
        let d = daemon(16);
        let path = d.file("a");
        let mut silent = Mapper::new(&d, &path);
        silent.map(0);
        silent.asked.set_receive_timeout(None).unwrap();
        silent.asked.set_send_timeout(None).unwrap();
        pins(&d, &path);
        let asked = silent.asked.recv(&mut [0; 4096], &mut Vec::new(), 0).unwrap();
        assert!(matches!(asked, Received::Packet(_)), "it was not asked: {asked:?}");
        until("its end", || d.server().sessions() == 0);
        silent.raw.hangs_up();
        drop(silent);
        d.ends_clean();
    });
}

/// What a client cannot or will not do, or says that makes no sense, fails it and no other.
#[test]
fn a_client_that_fails_what_it_is_asked_fails_nobody_else() {
    let told = [
        Told::Failed("it will not".into()),
        Told::OutOfVmas { max_map_count: 65530 },
        // Of none of its pages.
        Told::Done(Some(vec![span(1 << 40..1 << 41)])),
    ];
    for told in told {
        alone(60, move || {
            let d = daemon(16);
            let path = d.file("a");
            let mut bad = Mapper::new(&d, &path);
            bad.map(0);
            let over = Arc::new(AtomicBool::new(false));
            let answered = answers(bad.asked, Duration::ZERO, told, &over);
            pins(&d, &path);
            same(&std::fs::read(&path).unwrap(), &pattern(FILE), "the file");
            over.store(true, Ordering::SeqCst);
            assert!(answered.join().unwrap() > 0, "it was asked nothing");
            drop(bad.raw);
            d.ends_clean();
        });
    }
}

/// One that has the daemon's own description, stores through it, and says that it has not.
struct Liar {
    mapper: Raw,
    page: ForeignPage,
    over: Arc<AtomicBool>,
    answering: JoinHandle<u32>,
}

impl Liar {
    fn new(d: &Daemon, path: &Path) -> Liar {
        let mut mapper = Mapper::new(d, path);
        let page = mapped(&File::from(mapper.lent()), 0, true);
        mapper.map(0);
        let over = Arc::new(AtomicBool::new(false));
        let nothing = Told::Done(Some(Vec::new()));
        let answering = answers(mapper.asked, Duration::ZERO, nothing, &over);
        Liar { mapper: mapper.raw, page, over, answering }
    }

    /// Ends its session, and keeps the description (its mapping does).
    fn leaves(self) -> ForeignPage {
        drop(self.mapper);
        self.over.store(true, Ordering::SeqCst);
        assert!(self.answering.join().unwrap() > 0, "it was asked nothing");
        self.page
    }
}

/// The bytes of a page, as the device has them for another client.
fn page_on_device(file: &pageferry::File) -> Vec<u8> {
    device_reads(file, 0..PAGE)
}

/// Whoever stays behind with it is a stranger's: what was stored through it before is seen then, and what is later.
#[test]
fn a_description_that_a_client_leaves_with_is_a_strangers() {
    alone(60, || {
        let d = daemon(16);
        let path = d.file("a");
        let cache = pageferry::Cache::connect(&d.socket).unwrap();
        let file = cache.open(&path).unwrap();
        let liar = Liar::new(&d, &path);
        let mut model = pattern(PAGE);
        same(&page_on_device(&file), &model, "first");
        liar.page.store(5, 0xEE);
        let page = liar.leaves();
        until("its end", || d.server().sessions() == 1);
        model[5] = 0xEE;
        same(&page_on_device(&file), &model, "what was not told");
        page.store(6, 0xDD);
        model[6] = 0xDD;
        same(&page_on_device(&file), &model, "what is stored after its end");
        drop((page, file, cache));
        d.ends_clean();
    });
}

/// The daemon takes a new description though it cannot write back what is away.
#[test]
fn a_description_is_replaced_whatever_else_fails() {
    alone(60, || {
        let (d, _, drains) = clumsy();
        let path = d.file("a");
        let cache = pageferry::Cache::connect(&d.socket).unwrap();
        let file = cache.open(&path).unwrap();
        let liar = Liar::new(&d, &path);
        let pin = file.pin(PAGE..PAGE + 10, pageferry::PinMode::Write).unwrap();
        pin.view().unwrap().write(PAGE, &[7; 10]).unwrap();
        if let Err(why) = pin.release_with(pageferry::After::KeepAway) {
            crate::skipped!("nothing is kept away here: {why}");
        }
        let mut model = pattern(PAGE);
        same(&page_on_device(&file), &model, "first");
        drains.store(true, Ordering::SeqCst);
        let page = liar.leaves();
        until("its end", || d.server().sessions() == 1);
        drains.store(false, Ordering::SeqCst);
        for at in [5, 6] {
            page.store(at, 0xEE);
            model[at] = 0xEE;
            same(&page_on_device(&file), &model, "what is stored after its end");
        }
        drop(page);
        file.flush(0..FILE).unwrap();
        same(&std::fs::read(&path).unwrap()[PAGE as usize..][..10], &[7; 10], "what was away");
        drop((file, cache));
        d.ends_clean();
    });
}
