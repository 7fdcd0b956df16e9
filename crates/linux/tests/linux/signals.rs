//! Getting threads out of waits.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use pageferry_linux::{FileMap, UffdMode, current_tid, page_bytes};

use crate::reader::Reader;
use crate::threads::{Stance, send_sigbus, stance};
use crate::{child, file_of_pages};

static HANDLED: AtomicUsize = AtomicUsize::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static ADDR: AtomicUsize = AtomicUsize::new(0);
static TID: AtomicUsize = AtomicUsize::new(0);

extern "C" fn handler(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler.
    let info = unsafe { &*info };
    CODE.store(info.si_code, Ordering::Relaxed);
    // SAFETY: every SIGBUS of this test carries an address.
    ADDR.store(unsafe { info.si_addr() }.addr(), Ordering::Relaxed);
    TID.store(current_tid() as usize, Ordering::Relaxed);
    HANDLED.fetch_add(1, Ordering::Release);
}

fn install() {
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler only stores numbers.
    assert_eq!(unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) }, 0);
}

/// Waits until the thread has stopped in the way described; it is on its way there.
fn await_stance(tid: u32, wanted: impl Fn(Stance) -> bool) {
    while !wanted(stance(tid).expect("stance")) {
        thread::yield_now();
    }
}

#[test]
fn a_load_that_waits_is_interrupted_and_traps_again() {
    const NAME: &str = "signals::a_load_that_waits_is_interrupted_and_traps_again";
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let Some(reader) = Reader::any() else { return };
    install();
    let page = page_bytes();
    let file = file_of_pages(2);
    let map = FileMap::new(&file, 0, 2 * page, true).expect("map");
    map.trap(&reader.uffd, page..2 * page).expect("trap");
    let (tell, told) = channel();
    thread::scope(|scope| {
        let toucher = scope.spawn(|| {
            tell.send(current_tid()).expect("tell");
            map.load::<u8>(page).expect("load")
        });
        let tid = told.recv().expect("tid");
        let addr = reader.fault().addr;
        await_stance(tid, |s| s == Stance::UserMode);
        for round in 1..=3 {
            send_sigbus(tid, addr).expect("signal");
            // The handler has run before the access is made again.
            assert_eq!(reader.fault().addr, addr);
            assert_eq!(HANDLED.load(Ordering::Acquire), round);
            assert_eq!(CODE.load(Ordering::Relaxed), libc::SI_QUEUE);
            assert_eq!(ADDR.load(Ordering::Relaxed), addr);
            assert_eq!(TID.load(Ordering::Relaxed), tid as usize);
        }
        map.untrap(&reader.uffd, 0..2 * page).expect("untrap");
        assert_eq!(toucher.join().expect("toucher"), 2, "and then it succeeds");
    });
    let gone = send_sigbus(tid_of_nobody(), 0).expect_err("no such thread");
    assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
}

/// The id of a thread that has ended.
fn tid_of_nobody() -> u32 {
    let tid = thread::spawn(current_tid).join().expect("thread");
    // It is joined as soon as its stack is free, and is gone a moment later.
    while std::path::Path::new(&format!("/proc/self/task/{tid}")).exists() {
        thread::yield_now();
    }
    tid
}

#[test]
fn a_system_call_that_waits_is_not_interrupted_but_poison_ends_it() {
    const NAME: &str = "signals::a_system_call_that_waits_is_not_interrupted_but_poison_ends_it";
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let Some(reader) = Reader::start(UffdMode::KernelAndUser) else { return };
    if !reader.uffd.can_poison() {
        return println!("skipped: no UFFDIO_POISON");
    }
    install();
    let page = page_bytes();
    let (file, other) = (file_of_pages(2), file_of_pages(1));
    let fd = other.as_fd().as_raw_fd();
    let map = FileMap::new(&file, 0, 2 * page, true).expect("map");
    map.trap(&reader.uffd, page..2 * page).expect("trap");
    let (tell, told) = channel();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            tell.send(current_tid()).expect("tell");
            // SAFETY: the kernel reads a few bytes of the map, which is mapped.
            let n = unsafe { libc::pwrite(fd, map.as_ptr().wrapping_add(page).cast(), 10, 0) };
            let error = std::io::Error::last_os_error();
            (n, error.raw_os_error(), HANDLED.load(Ordering::Acquire))
        });
        let tid = told.recv().expect("tid");
        let addr = reader.fault().addr;
        await_stance(tid, |s| s == Stance::SystemCall(libc::SYS_pwrite64));
        send_sigbus(tid, addr).expect("signal");
        // The thread retries as fast as it can, and the handler does not run.
        for _ in 0..200 {
            assert_eq!(reader.fault().addr & !(page - 1), addr & !(page - 1));
        }
        assert_eq!(HANDLED.load(Ordering::Acquire), 0);
        map.poison(&reader.uffd, page..2 * page).expect("poison");
        let (n, errno, handled) = writer.join().expect("writer");
        assert_eq!((n, errno, handled), (-1, Some(libc::EFAULT), 1));
        map.untrap(&reader.uffd, 0..2 * page).expect("untrap");
    });
    assert_eq!(map.load::<u8>(page).expect("load"), 2);
}

#[test]
fn a_load_of_a_poisoned_page_is_a_sigbus_of_the_kernels_own() {
    const NAME: &str = "signals::a_load_of_a_poisoned_page_is_a_sigbus_of_the_kernels_own";
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let Some(reader) = Reader::any() else { return };
    if !reader.uffd.can_poison() {
        return println!("skipped: no UFFDIO_POISON");
    }
    install();
    let page = page_bytes();
    let file = file_of_pages(2);
    let map = FileMap::new(&file, 0, 2 * page, true).expect("map");
    map.trap(&reader.uffd, page..2 * page).expect("trap");
    thread::scope(|scope| {
        let toucher = scope.spawn(|| map.load::<u8>(page + 5).expect("load"));
        let addr = reader.fault().addr;
        map.poison(&reader.uffd, page..2 * page).expect("poison");
        while HANDLED.load(Ordering::Acquire) == 0 {
            thread::yield_now();
        }
        let code = CODE.load(Ordering::Relaxed);
        assert!([libc::BUS_ADRERR, libc::BUS_MCEERR_AR].contains(&code), "{code}");
        assert_eq!(ADDR.load(Ordering::Relaxed) & !(page - 1), addr & !(page - 1));
        map.untrap(&reader.uffd, 0..2 * page).expect("untrap");
        assert_eq!(toucher.join().expect("toucher"), 2);
    });
}

#[test]
fn without_a_handler_the_process_dies_of_it() {
    const NAME: &str = "signals::without_a_handler_the_process_dies_of_it";
    if let Some(output) = child::again(NAME) {
        let said = String::from_utf8_lossy(&output.stdout);
        if !said.contains("skipped") {
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{said}");
        }
        return;
    }
    let Some(reader) = Reader::any() else { return };
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, no_core).expect("setrlimit");
    let page = page_bytes();
    let file = file_of_pages(1);
    let map = FileMap::new(&file, 0, page, true).expect("map");
    map.trap(&reader.uffd, 0..page).expect("trap");
    let (tell, told) = channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            tell.send(current_tid()).expect("tell");
            map.load::<u8>(0)
        });
        let tid = told.recv().expect("tid");
        // Rust's own handler, which looks for stack overflows, takes the first one, restores the
        // default and lets the access be made again.
        loop {
            send_sigbus(tid, reader.fault().addr).expect("signal");
        }
    });
}

#[test]
fn what_a_thread_is_doing_is_told() {
    let asking = stance(current_tid()).expect("stance");
    assert_eq!(asking, Stance::SystemCall(libc::SYS_read), "it reads the answer");
    let (tell, told) = channel();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            tell.send(current_tid()).expect("tell");
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        await_stance(told.recv().expect("tid"), |s| s == Stance::Running);
        stop.store(true, Ordering::Relaxed);
    });
    let gone = stance(tid_of_nobody()).expect_err("no such thread");
    assert!(matches!(gone.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)), "{gone}");
}
