//! What a watch hears, and what a lease proves: the facts that a copy's trust rests on.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use pageferry_linux::{Heard, HostFile, LeaseBreaks, Watch, WatchKey};

use crate::child;

struct Scene {
    dir: tempfile::TempDir,
    watch: Watch,
    file: HostFile,
    key: WatchKey,
    breaks: LeaseBreaks,
}

fn scene_in(base: &std::path::Path, writable: bool) -> Scene {
    let dir = tempfile::tempdir_in(base).expect("directory");
    std::fs::write(dir.path().join("f"), vec![1; 8192]).expect("file");
    let watch = Watch::new().expect("fanotify");
    let file = HostFile::open(dir.path().join("f"), writable).expect("open");
    let key = watch.add(&file).expect("mark");
    let breaks = LeaseBreaks::start(|| ()).expect("thread");
    file.send_breaks_to(&breaks);
    Scene { dir, watch, file, key, breaks }
}

impl Scene {
    fn heard(&self) -> Vec<Heard> {
        let mut all = Vec::new();
        self.watch.drain(|h| all.push(h)).expect("drain");
        assert!(all.iter().all(|h| h.file.as_ref() == Some(&self.key)), "{all:?}");
        all
    }

    /// This process did it.
    fn is_ours(&self, heard: &Heard) -> bool {
        heard.own || heard.thread == Some(pageferry_linux::current_tid())
    }

    fn alone(&self) -> bool {
        let alone = self.file.take_lease().is_ok();
        self.file.drop_lease();
        alone
    }

    /// After a close: a child that another test forks at this moment may have the descriptor until
    /// it calls `exec`.
    fn alone_soon(&self) -> bool {
        (0..2000).any(|_| {
            self.alone() || {
                std::thread::sleep(std::time::Duration::from_millis(1));
                false
            }
        })
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("f")
    }
}

fn bases() -> Vec<std::path::PathBuf> {
    vec![std::env::temp_dir(), "/dev/shm".into()]
}

/// Runs a shell command in another process.
fn shell(scene: &Scene, command: &str) {
    let status = std::process::Command::new("sh")
        .args(["-c", command])
        .env("F", scene.path())
        .status()
        .expect("sh");
    assert!(status.success(), "{command}");
}

#[test]
fn others_and_ourselves_are_told_apart() {
    for base in bases() {
        let s = scene_in(&base, true);
        assert_eq!(s.heard(), []);
        s.file.write_at(&[2], 0).expect("write");
        let own = s.heard();
        assert!(own.iter().all(|h| s.is_ours(h) && h.changed() && !h.visited()), "{own:?}");
        assert_eq!(own.len(), 1);
        shell(&s, r#"printf x | dd of="$F" bs=1 seek=5 conv=notrunc 2>/dev/null"#);
        let theirs = s.heard();
        assert!(theirs.iter().all(|h| !s.is_ours(h)), "{theirs:?}");
        assert!(
            theirs.iter().any(|h| h.changed()) && theirs.iter().any(|h| h.visited()),
            "{theirs:?}"
        );
        shell(&s, r#"cat "$F" >/dev/null"#);
        let read = s.heard();
        assert!(read.iter().all(|h| !s.is_ours(h) && !h.changed() && h.visited()), "{read:?}");
        assert!(!read.is_empty());
        // By name, without an open.
        std::fs::File::open(s.path()).expect("open").metadata().expect("stat");
        assert!(s.heard().iter().all(|h| s.is_ours(h) && !h.changed() && h.visited()));
        let path = std::ffi::CString::new(s.path().to_str().expect("text")).expect("path");
        // SAFETY: a valid path.
        assert_eq!(unsafe { libc::truncate(path.as_ptr(), 100) }, 0);
        let cut = s.heard();
        assert!(
            cut.iter().all(|h| s.is_ours(h) && h.changed() && !h.visited()) && !cut.is_empty(),
            "{cut:?}"
        );
    }
}

#[test]
fn a_lease_is_granted_exactly_to_who_is_alone() {
    for base in bases() {
        let s = scene_in(&base, true);
        assert!(s.alone());
        let reader = std::fs::File::open(s.path()).expect("open");
        assert!(!s.alone(), "a reader of our own process");
        drop(reader);
        assert!(s.alone_soon());
        let r = scene_in(&base, false);
        let reader = std::fs::File::open(r.path()).expect("open");
        assert!(r.alone(), "readers do not matter to a reader");
        let writer = std::fs::OpenOptions::new().write(true).open(r.path()).expect("open");
        assert!(!r.alone());
        drop((reader, writer));
        assert!(r.alone_soon());
        // A mapping that has outlived its descriptor.
        let writer = std::fs::File::options().read(true).write(true).open(r.path()).expect("open");
        // SAFETY: a fresh mapping of one page.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_WRITE,
                libc::MAP_SHARED,
                writer.as_raw_fd(),
                0,
            )
        };
        assert_ne!(map, libc::MAP_FAILED);
        drop(writer);
        r.heard();
        assert!(!r.alone(), "a writable mapping");
        // SAFETY: mapped above.
        unsafe { libc::munmap(map, 4096) };
        assert!(r.alone_soon());
        assert!(r.heard().iter().any(|h| h.changed()), "its end shows as a writer's close");
    }
}

#[test]
fn whoever_opens_a_leased_file_waits_and_the_holder_is_told() {
    let s = scene_in(&std::env::temp_dir(), true);
    let (told, hear) = std::sync::mpsc::channel();
    let breaks = LeaseBreaks::start(move || told.send(()).expect("listened to")).expect("thread");
    s.file.send_breaks_to(&breaks);
    // Giving one up forgets whom to tell of the next.
    assert!(s.alone() && s.alone());
    s.file.take_lease().expect("lease");
    assert!(s.file.has_lease());
    let path = s.path();
    let opener = std::thread::spawn(move || {
        let file = std::fs::File::open(path).expect("open");
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).expect("read");
        byte[0]
    });
    hear.recv().expect("told");
    assert!(!s.file.has_lease(), "somebody waits for its end");
    assert!(!opener.is_finished());
    s.file.write_at(&[9], 0).expect("write");
    s.file.drop_lease();
    assert_eq!(opener.join().expect("opener"), 9, "it saw what was written before it was let in");
    drop(breaks);
}

/// As an ordinary user, on a file of one's own; and somebody else's file proves nothing.
#[test]
fn it_works_without_privileges() {
    let name = "watch::it_works_without_privileges";
    match child::again_as_nobody(name) {
        Err(why) => return println!("skipped: {why}"),
        Ok(Some(output)) => return child::passed(&output),
        Ok(None) => {}
    }
    let s = scene_in(&std::env::temp_dir(), true);
    assert!(s.alone());
    s.file.write_at(&[2], 0).expect("write");
    assert!(!s.watch.tells_threads());
    assert!(s.heard().iter().all(|h| h.own));
    let other = HostFile::open("/etc/passwd", false).expect("open");
    s.watch.add(&other).expect("watching needs no ownership");
    assert!(other.take_lease().is_err(), "nobody would be told");
    other.send_breaks_to(&s.breaks);
    let refused = other.take_lease().expect_err("not ours");
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
}
