//! What a gate is asked, and what not.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc;

use pageferry_linux::{Gate, HostFile};

/// A gate, or why there is none.
fn gate() -> Option<Arc<Gate>> {
    match Gate::new() {
        Ok(gate) => Some(Arc::new(gate)),
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

#[test]
fn others_wait_and_what_was_open_before_does_not() {
    let Some(gate) = gate() else { return };
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("f");
    std::fs::write(&path, vec![1; 64 << 10]).expect("file");
    let file = Arc::new(HostFile::open(&path, true).expect("open"));
    let early = std::fs::File::open(&path).expect("open");
    if let Err(why) = gate.add(&file) {
        return println!("skipped: {why}");
    }
    let (tell, told) = mpsc::channel();
    let listener = std::thread::spawn({
        let (gate, file) = (Arc::clone(&gate), Arc::clone(&file));
        move || {
            while gate
                .next(|access| {
                    let id = access.file().expect("statx");
                    let from = (!access.opening).then_some(access.range.start);
                    tell.send((id, from, access.is_beside(&file))).expect("listened to");
                })
                .expect("read")
            {}
        }
    });
    let mut byte = [0];
    early.read_exact_at(&mut byte, 0).expect("read");
    file.read_at(&mut byte, 0).expect("read");
    file.write_at(&[2], 9000).expect("write");
    assert!(told.try_recv().is_err(), "asked about what was open before");
    let late = std::fs::File::options().read(true).write(true).open(&path).expect("open");
    let asked = |what: &str| {
        let (id, from, beside) = told.recv().unwrap_or_else(|_| panic!("{what}: not asked"));
        assert_eq!(id, file.identity());
        assert!(beside, "{what}: through the same mount");
        from
    };
    assert_eq!(asked("open"), None);
    late.read_exact_at(&mut byte, 10_000).expect("read");
    assert_eq!(asked("read"), Some(8192));
    late.write_all_at(&[3], 20_000).expect("write");
    assert_eq!(asked("write"), Some(16_384));
    late.set_len(32 << 10).expect("truncate");
    assert_eq!(asked("truncate"), Some(32 << 10));
    // SAFETY: a fresh mapping of one page.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            libc::MAP_SHARED,
            late.as_raw_fd(),
            4096,
        )
    };
    assert_ne!(map, libc::MAP_FAILED);
    assert_eq!(asked("mmap"), Some(4096));
    gate.remove(&file).expect("marked");
    late.read_exact_at(&mut byte, 0).expect("read");
    gate.stop();
    listener.join().expect("listener");
    assert!(told.try_recv().is_err(), "asked about a file that is no longer marked");
}

/// A child that never calls `exec` and outlives the gate has nobody wait for an answer.
#[test]
fn a_forked_child_does_not_keep_the_gate() {
    let Some(gate) = gate() else { return };
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("f");
    std::fs::write(&path, [1; 4096]).expect("file");
    let file = HostFile::open(&path, true).expect("open");
    if let Err(why) = gate.add(&file) {
        return println!("skipped: {why}");
    }
    let (up, down) = std::io::pipe().expect("pipe");
    // SAFETY: the child waits for the pipe's end and exits.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork");
    if child == 0 {
        drop(down);
        let ended = std::io::Read::read(&mut &up, &mut [0]).is_ok();
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(i32::from(!ended)) };
    }
    drop(gate);
    let reader = std::thread::spawn(move || std::fs::read(path).expect("read"));
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !reader.is_finished() && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let hangs = !reader.is_finished();
    drop(down);
    let mut status = 0;
    // SAFETY: our own child; `status` is valid for writes.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(!hangs, "whoever opens the file waits for the child");
    assert_eq!(reader.join().expect("reader"), [1; 4096]);
    assert_eq!(status, 0);
}
