//! CPU mappings: native while home, waiting while away, never wrong.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use crate::common::{FRAME, PAGE, Rig, device_reads, device_writes, pattern, rig, same, within};
use pageferry::{After, Error, File, Map, PageState, PinMode};

fn mapped(r: &Rig, bytes: u64) -> (File, Map) {
    let f = r.file("a", bytes);
    let m = f.map(0..bytes, true).unwrap();
    (f, m)
}

fn reads(m: &Map, len: usize) -> Vec<u8> {
    let mut buf = vec![0xEE; len];
    m.read(0, &mut buf).unwrap();
    buf
}

#[test]
fn a_load_of_an_away_page_waits_and_gets_the_devices_bytes() {
    let r = rig(8);
    let (f, m) = mapped(&r, 4 * FRAME);
    device_writes(&f, 2 * FRAME + 8, &[9; 100], After::KeepAway);
    assert_eq!(m.load_u8(2 * FRAME as usize + 50).unwrap(), 9, "a raw load");
    let mut model = pattern(4 * FRAME);
    model[2 * FRAME as usize + 8..][..100].fill(9);
    same(&r.on_disk("a"), &model, "brought home");
    assert_eq!(f.placement(2 * FRAME..2 * FRAME + 1).unwrap()[0].state, PageState::Copy);
    same(&reads(&m, 4 * FRAME as usize), &model, "the mapping");
}

#[test]
fn a_store_to_an_away_page_lands_on_top_of_the_devices_bytes() {
    let r = rig(8);
    let (f, m) = mapped(&r, FRAME);
    device_writes(&f, 0, &[5; 4096], After::KeepAway);
    m.store_u8(17, 77).unwrap();
    let mut model = pattern(FRAME);
    model[..4096].fill(5);
    model[17] = 77;
    same(&device_reads(&f, 0..FRAME), &model, "the device");
    same(&r.on_disk("a"), &model, "the file");
}

#[test]
fn own_stores_reach_the_next_pin_and_only_their_pages_move() {
    let r = rig(8);
    let (f, m) = mapped(&r, 2 * FRAME);
    let mut model = pattern(2 * FRAME);
    same(&device_reads(&f, 0..2 * FRAME), &model, "first");
    for round in 0..20u8 {
        let before = r.stat("fetched_bytes");
        let at = 3 * PAGE as usize + usize::from(round) * 4096;
        m.store_u8(at, round ^ 0x55).unwrap();
        model[at] = round ^ 0x55;
        same(&device_reads(&f, 0..2 * FRAME), &model, "the device");
        assert_eq!(r.stat("fetched_bytes") - before, PAGE, "round {round}");
    }
}

#[test]
fn system_calls_given_away_memory_see_the_devices_bytes() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let r = rig(8);
    let (f, m) = mapped(&r, FRAME);
    device_writes(&f, 0, &[6; 8192], After::KeepAway);
    let (mut to, mut from) = UnixStream::pair().unwrap();
    // SAFETY: inside the mapping; the kernel copies from it, and no Rust code reads the slice.
    let slice = unsafe { std::slice::from_raw_parts(m.as_ptr(), 8192) };
    match to.write(slice) {
        Ok(n) => {
            let mut buf = vec![0; n];
            from.read_exact(&mut buf).unwrap();
            same(&buf, &vec![6; n], "write(2)");
        }
        Err(e) => crate::skipped!("system calls do not wait here ({e})"),
    }
}

/// As a debugger reads: the kernel fetches the pages on behalf of whoever asks.
#[test]
fn readers_of_a_processs_memory_see_the_devices_bytes() {
    use std::os::unix::fs::FileExt;
    let r = rig(8);
    let (f, m) = mapped(&r, FRAME);
    let vm_readv = |buf: &mut [u8]| {
        let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let remote = libc::iovec { iov_base: m.as_ptr().cast(), iov_len: buf.len() };
        let id = std::process::id().cast_signed();
        // SAFETY: the local buffer is ours for the call; the remote one is only read, by the kernel.
        let n = unsafe { libc::process_vm_readv(id, &local, 1, &remote, 1, 0) };
        usize::try_from(n).map_err(|_| std::io::Error::last_os_error())
    };
    let proc_mem =
        |buf: &mut [u8]| std::fs::File::open("/proc/self/mem")?.read_at(buf, m.as_ptr() as u64);
    type Way<'a> = &'a dyn Fn(&mut [u8]) -> std::io::Result<usize>;
    let ways: [(&str, Way<'_>); 2] =
        [("process_vm_readv", &vm_readv), ("/proc/self/mem", &proc_mem)];
    for (n, (name, way)) in ways.into_iter().enumerate() {
        let model = vec![0x60 + n as u8; 8192];
        device_writes(&f, 0, &model, After::KeepAway);
        assert_eq!(f.placement(0..1).unwrap()[0].state, PageState::Away);
        let mut buf = vec![0xEE; 8192];
        match way(&mut buf) {
            Ok(read) => same(&buf[..read], &model, name),
            Err(e) => crate::skipped!("{name} does not wait here ({e})"),
        }
    }
}

#[test]
fn a_touch_of_a_live_write_pin_waits_for_its_release() {
    let r = rig(8);
    let (f, m) = mapped(&r, FRAME);
    let pin = f.pin(0..PAGE, PinMode::Write).unwrap();
    let released = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let (m, released) = (&m, &released);
        let toucher = scope.spawn(move || {
            tell.send(()).unwrap();
            let value = m.load_u8(100).unwrap();
            assert!(released.load(Ordering::SeqCst), "the touch did not wait");
            value
        });
        told.recv().unwrap();
        pin.view().unwrap().write(100, &[42]).unwrap();
        released.store(true, Ordering::SeqCst);
        pin.release().unwrap();
        assert_eq!(toucher.join().unwrap(), 42);
    });
}

#[test]
fn a_thread_that_touches_its_own_write_pin_is_told() {
    let r = rig(8);
    let (f, m) = mapped(&r, FRAME);
    let pin = f.pin(0..PAGE, PinMode::Write).unwrap();
    assert!(matches!(m.read(0, &mut [0]), Err(Error::WouldDeadlock { .. })));
    assert!(matches!(m.write(0, &[0]), Err(Error::WouldDeadlock { .. })));
    m.read(PAGE as usize, &mut [0]).unwrap();
    pin.release().unwrap();
    m.read(0, &mut [0]).unwrap();
}

#[test]
fn mapping_over_a_live_write_pin_and_over_away_pages_hides_nothing() {
    let r = rig(8);
    let f = r.file("a", FRAME);
    device_writes(&f, 8 * PAGE, &[3; 10], After::KeepAway);
    let pin = f.pin(0..PAGE, PinMode::Write).unwrap();
    let m = f.map(0..FRAME, true).unwrap();
    assert!(matches!(m.read(5, &mut [0]), Err(Error::WouldDeadlock { .. })));
    let mut buf = [0; 10];
    m.read(8 * PAGE as usize, &mut buf).unwrap();
    assert_eq!(buf, [3; 10]);
    pin.view().unwrap().write(0, b"z").unwrap();
    pin.release().unwrap();
    assert_eq!(m.load_u8(0).unwrap(), b'z');
}

#[test]
fn two_mappings_agree() {
    let r = rig(8);
    let (f, m) = mapped(&r, 2 * FRAME);
    let n = f.map(FRAME..2 * FRAME, false).unwrap();
    device_writes(&f, FRAME - 10, &[8; 20], After::KeepAway);
    assert_eq!(n.load_u8(5).unwrap(), 8);
    assert_eq!(m.load_u8(FRAME as usize - 5).unwrap(), 8);
    m.store_u8(FRAME as usize + 100, 1).unwrap();
    assert_eq!(n.load_u8(100).unwrap(), 1);
    assert_eq!(device_reads(&f, FRAME + 100..FRAME + 101), [1]);
    assert!(matches!(n.write(0, b"x"), Err(Error::ReadOnly(_))));
    assert!(n.store_u8(0, 1).is_err());
}

#[test]
fn stores_before_an_unmap_are_not_forgotten() {
    let r = rig(8);
    let (f, m) = mapped(&r, FRAME);
    device_reads(&f, 0..FRAME);
    m.store_u8(4100, 99).unwrap();
    m.unmap().unwrap();
    assert_eq!(device_reads(&f, 4100..4101), [99]);
}

#[test]
fn an_unmapped_away_range_is_not_lost() {
    let r = rig(8);
    let (f, m) = mapped(&r, FRAME);
    device_writes(&f, 0, &[4; 100], After::KeepAway);
    drop(m);
    let n = f.map(0..FRAME, false).unwrap();
    assert_eq!(n.load_u8(99).unwrap(), 4);
}

#[test]
fn past_the_end_of_the_file_accessors_report_and_never_crash() {
    let r = rig(8);
    let f = r.file("a", PAGE + 10);
    let m = f.map(0..4 * PAGE, true).unwrap();
    m.read(PAGE as usize, &mut [0; 4096]).unwrap();
    let past = m.read(2 * PAGE as usize - 1, &mut [0; 2]);
    assert!(matches!(past, Err(Error::PastEof { file_bytes, .. }) if file_bytes == PAGE + 10));
    f.set_len(0).unwrap();
    assert!(matches!(m.write(0, b"x"), Err(Error::PastEof { file_bytes: 0, .. })));
    assert!(matches!(m.read(4 * PAGE as usize, &mut [0]), Err(Error::InvalidArgument(_))));
    assert!(matches!(m.load_u32(2), Err(Error::InvalidArgument(_))));
}

#[test]
fn truncation_under_an_away_mapping_lifts_its_traps() {
    let r = rig(8);
    let (f, m) = mapped(&r, 4 * PAGE);
    device_writes(&f, 0, &[7; 4 * 4096], After::KeepAway);
    f.set_len(PAGE + 1).unwrap();
    assert!(matches!(m.read(3 * PAGE as usize, &mut [0]), Err(Error::PastEof { .. })));
    let mut buf = [0; 4096];
    m.read(PAGE as usize, &mut buf).unwrap();
    assert_eq!((buf[0], &buf[1..]), (7, &[0; 4095][..]));
}

/// A thread waits in a touch; what it waits for cannot be brought home: it gets SIGBUS, others go
/// on, and a retry works once it can be. In a child process, as the signal would end the suite.
#[test]
fn a_raw_touch_of_an_own_write_pin_is_a_sigbus() {
    const NAME: &str = "mapping::a_raw_touch_of_an_own_write_pin_is_a_sigbus";
    if std::env::var_os("PAGEFERRY_CHILD").is_some() {
        let r = rig(8);
        let (f, m) = mapped(&r, FRAME);
        let _pin = f.pin(0..PAGE, PinMode::Write).unwrap();
        println!("touching");
        let _ = m.load_u8(0);
        println!("not reached");
        return;
    }
    use std::os::unix::process::ExitStatusExt;
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env("PAGEFERRY_CHILD", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(said.contains("touching") && !said.contains("not reached"), "{said}");
    assert_eq!(child.status.signal(), Some(libc::SIGBUS), "{child:?}");
}

/// A system call that is given memory under the thread's own write pin fails instead of hanging.
#[test]
fn a_system_call_on_an_own_write_pin_fails() {
    use std::io::Write;
    let r = rig(8);
    let (f, m) = mapped(&r, FRAME);
    let pin = f.pin(0..PAGE, PinMode::Write).unwrap();
    let (mut to, _from) = std::os::unix::net::UnixStream::pair().unwrap();
    // SAFETY: inside the mapping; the kernel copies from it, and no Rust code reads the slice.
    let slice = unsafe { std::slice::from_raw_parts(m.as_ptr(), 100) };
    assert!(to.write(slice).is_err());
    pin.view().unwrap().write(0, &[1; 100]).unwrap();
    pin.release().unwrap();
    assert_eq!(m.load_u8(99).unwrap(), 1, "the page is in order again");
    to.write_all(slice).unwrap();
}

/// A forked child that touches the mapping, away or home, dies; it never reads zeros.
#[test]
fn a_forked_child_never_reads_zeros() {
    let r = rig(8);
    let (f, m) = mapped(&r, 2 * FRAME);
    device_writes(&f, 0, &[7; 100], After::KeepAway);
    for at in [0, FRAME as usize + 4096] {
        // SAFETY: the child only touches memory and exits, both async-signal-safe.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: the default action, so that the fault ends the child whatever the runner set.
            unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
            // SAFETY: the access faults (asserted below); if it did not, it would read a byte.
            let byte = unsafe { m.as_ptr().wrapping_add(at).read_volatile() };
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(i32::from(byte)) };
        }
        let mut status = 0;
        // SAFETY: waits for the child just made.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        assert!(libc::WIFSIGNALED(status), "the child read {}", libc::WEXITSTATUS(status));
        assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
    }
    assert_eq!(m.load_u8(0).unwrap(), 7);
}

/// A signal to a thread that waits in a system call makes it tell of its page over and over: that is
/// one touch, and holds up nobody.
#[test]
fn a_signal_to_a_waiting_system_call_floods_nobody() {
    extern "C" fn nothing(_: libc::c_int) {}
    within(60, || {
        let r = rig(8);
        let (f, m) = mapped(&r, FRAME);
        let handler = nothing as extern "C" fn(libc::c_int) as usize;
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR1, handler) };
        let out = std::fs::File::create(r.path("out")).unwrap();
        let pin = f.pin(0..100, PinMode::Write).unwrap();
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let (m, out) = (&m, &out);
            let writer = scope.spawn(move || {
                // SAFETY: asks for a number.
                tell.send(unsafe { libc::pthread_self() }).unwrap();
                let fd = std::os::fd::AsRawFd::as_raw_fd(out);
                // SAFETY: the memory is the mapping's, for as long as it lives; others may change it.
                unsafe { libc::write(fd, m.as_ptr().cast(), 100) }
            });
            let thread = told.recv().unwrap();
            for _ in 0..20 {
                std::thread::sleep(std::time::Duration::from_millis(10));
                // SAFETY: the thread is joined below.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
            }
            device_reads(&f, 2 * PAGE..3 * PAGE);
            pin.view().unwrap().write(0, &[7; 100]).unwrap();
            pin.release().unwrap();
            let written = writer.join().unwrap();
            if written < 0 {
                crate::skipped!("system calls do not wait for away memory here");
                return;
            }
            assert_eq!(written, 100);
            assert_eq!(r.on_disk("out"), [7; 100]);
        });
        assert!(r.stat("touches") < 20, "{} touches", r.stat("touches"));
    });
}
