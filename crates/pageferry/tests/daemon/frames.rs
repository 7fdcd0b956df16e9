//! Device memory in the hands of clients.

use std::fs::{File, Permissions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;

use crate::children::{play, say};
use crate::common::*;
use crate::raw::*;
use pageferry_wire::*;

/// Tries all that might write to memory which a path leads to, and a descriptor if it is had. What succeeds is told.
fn write_by_all_means(path: &str, fd: Option<BorrowedFd<'_>>) -> Vec<&'static str> {
    let mut done = Vec::new();
    let mut tried = |what, worked: bool| {
        if worked {
            done.push(what);
        }
    };
    let write = [0xBA; 64];
    // Its owner may do that; it must not help.
    let _ = std::fs::set_permissions(path, Permissions::from_mode(0o777));
    for (how, write_only) in [("reopen O_RDWR", false), ("reopen O_WRONLY", true)] {
        if let Ok(file) = File::options().read(!write_only).write(true).open(path) {
            tried(how, file.write_at(&write, 0).is_ok());
            tried(
                "ftruncate of a reopened one",
                file.set_len(0).is_ok() || file.set_len(1 << 20).is_ok(),
            );
            tried("a shared mapping of a reopened one", maps_writable(file.as_fd()));
            tried("fallocate of a reopened one", punches(file.as_fd()));
        }
    }
    tried("O_TRUNC", File::options().write(true).truncate(true).open(path).is_ok());
    tried("truncate by name", {
        let path = std::ffi::CString::new(path).unwrap();
        // SAFETY: a string that outlives the call.
        unsafe { libc::truncate(path.as_ptr(), 0) == 0 }
    });
    let reopened = File::open(path).ok();
    let fds = fd.into_iter().chain(reopened.as_ref().map(|f| f.as_fd()));
    for fd in fds {
        let raw = fd.as_raw_fd();
        let at = write.as_ptr().cast();
        // SAFETY: reads the buffer only.
        tried("write", unsafe { libc::write(raw, at, 64) } > 0);
        // SAFETY: reads the buffer only.
        tried("pwrite", unsafe { libc::pwrite(raw, at, 64, 0) } > 0);
        // SAFETY: a number.
        tried("ftruncate", unsafe { libc::ftruncate(raw, 0) } == 0);
        tried("fallocate", punches(fd));
        tried("a shared writable mapping", maps_writable(fd));
        // SAFETY: numbers.
        unsafe { libc::fcntl(raw, libc::F_SETFL, libc::O_RDWR) };
        // SAFETY: numbers.
        let mode = unsafe { libc::fcntl(raw, libc::F_GETFL) } & libc::O_ACCMODE;
        tried("fcntl(F_SETFL)", mode != libc::O_RDONLY);
        // SAFETY: numbers.
        tried("a new seal", unsafe { libc::fcntl(raw, libc::F_ADD_SEALS, libc::F_SEAL_EXEC) } == 0);
    }
    done
}

fn punches(fd: BorrowedFd<'_>) -> bool {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: numbers.
    unsafe { libc::fallocate(fd.as_raw_fd(), mode, 0, 4096) == 0 }
}

/// Maps it for writing, also by way of a mapping for reading, and stores if that works.
fn maps_writable(fd: BorrowedFd<'_>) -> bool {
    let map = |access| {
        let (none, len, shared) = (std::ptr::null_mut(), 4096, libc::MAP_SHARED);
        // SAFETY: a new mapping where nothing is.
        unsafe { libc::mmap(none, len, access, shared, fd.as_raw_fd(), 0) }
    };
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let mut at = map(both);
    if at == libc::MAP_FAILED {
        at = map(libc::PROT_READ);
        if at == libc::MAP_FAILED {
            return false;
        }
        // SAFETY: our mapping.
        if unsafe { libc::mprotect(at, 4096, both) } != 0 {
            // SAFETY: our mapping.
            unsafe { libc::munmap(at, 4096) };
            return false;
        }
    }
    // SAFETY: mapped for writing.
    unsafe { at.cast::<u8>().write_volatile(0xBA) };
    // SAFETY: our mapping.
    unsafe { libc::munmap(at, 4096) };
    true
}

/// In a process of another user.
pub fn attempts(path: &str) {
    say(&write_by_all_means(path, None).join(", "));
}

#[test]
fn frames_are_written_by_no_means() {
    alone(120, || {
        let d = daemon(8);
        let path = d.file("a");
        let mut attacker = d.client();
        // Also for who may write the file, and holds it for writing.
        for mode in [Mode::Read, Mode::Write] {
            let file = attacker.open(&path, mode != Mode::Read);
            let pin = attacker.pin(file, 0..FRAME, mode).unwrap();
            let memory = attacker.frames(pin, 0, 1).unwrap().1.remove(0);
            let by_path = format!("/proc/self/fd/{}", memory.as_raw_fd());
            assert_eq!(write_by_all_means(&by_path, Some(memory.as_fd())), [""; 0]);
            let [pid, fd] = [std::process::id() as i32, memory.as_raw_fd()].map(|n| n.to_string());
            let mut same_user = play("attempt", &[&pid, &fd], |_| {});
            same_user.must_say("");
            // SAFETY: asks for a number.
            if unsafe { libc::geteuid() } == 0 {
                let nobody = |c: &mut std::process::Command| {
                    c.uid(65534).gid(65534);
                };
                play("attempt", &[&pid, &fd], nobody).must_say("");
            }
            attacker.release(pin).unwrap();
            let mut other = d.client();
            let file = other.open(&path, false);
            let pin = other.pin(file, 0..FRAME, Mode::Read).unwrap();
            let memory = File::from(other.frames(pin, 0, 1).unwrap().1.remove(0));
            let mut seen = vec![0; FRAME as usize];
            memory.read_exact_at(&mut seen, 0).unwrap();
            same(&seen, &pattern(FILE)[..FRAME as usize], "what another client sees");
        }
        same(&std::fs::read(&path).unwrap(), &pattern(FILE), "the file");
        drop(attacker);
        d.ends_clean();
    });
}

#[test]
fn frames_are_those_of_the_pin_and_of_no_other_folio() {
    alone(60, || {
        let d = daemon(16);
        let path = d.file("a");
        let mut other = d.client();
        let file = other.open(&path, false);
        // Resident and pinned, by somebody else.
        let all = other.pin(file, 0..FILE, Mode::Read).unwrap();
        let mut raw = d.client();
        let file = raw.open(&path, false);
        let pin = raw.pin(file, FRAME + 4096..FRAME + 8192, Mode::Read).unwrap();
        let (serials, memories) = raw.frames(pin, 0, 4).unwrap();
        assert_eq!(
            serials.iter().map(|serial| *serial != 0).collect::<Vec<_>>(),
            [false, true, false, false]
        );
        assert_eq!(memories.len(), 1);
        for first in [2, 1 << 40, u64::MAX / FRAME, u64::MAX - 3, u64::MAX] {
            let (serials, memories) = raw.frames(pin, first, 64).unwrap();
            assert_eq!((serials, memories.len()), (vec![0; 64], 0), "from folio {first}");
        }
        raw.release(pin).unwrap();
        is_protocol(raw.frames(pin, 1, 1));
        other.release(all).unwrap();
        drop((raw, other, memories));
        d.ends_clean();
    });
}

/// A page of a frame, mapped.
struct Mapped(*const u8);

impl Mapped {
    fn new(memory: BorrowedFd<'_>) -> Mapped {
        let (none, len, shared) = (std::ptr::null_mut(), FRAME as usize, libc::MAP_SHARED);
        // SAFETY: a new mapping where nothing is.
        let at = unsafe { libc::mmap(none, len, libc::PROT_READ, shared, memory.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Mapped(at.cast())
    }

    fn bytes(&self) -> Vec<u8> {
        let at = |at| self.0.wrapping_add(at);
        // SAFETY: inside the mapping; others change it, hence volatile.
        (0..FRAME as usize).map(|byte| unsafe { at(byte).read_volatile() }).collect()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: our mapping.
        unsafe { libc::munmap(self.0.cast_mut().cast(), FRAME as usize) };
    }
}

/// The device has two frames; a client keeps what it was given, while other files pass through them.
#[test]
fn memory_that_a_client_keeps_never_shows_another_file() {
    alone(120, || {
        let d = daemon(2);
        let public = d.path("public");
        std::fs::write(&public, vec![0x11; FRAME as usize]).unwrap();
        let mut raw = d.client();
        let file = raw.open(&public, false);
        let mut kept = Vec::new();
        for round in 0..20u8 {
            let pin = raw.pin(file, 0..FRAME, Mode::Read).unwrap();
            let memory = raw.frames(pin, 0, 1).unwrap().1.remove(0);
            kept.push((Mapped::new(memory.as_fd()), memory));
            raw.release(pin).unwrap();
            let secret = d.path(&format!("secret {round}"));
            std::fs::write(&secret, vec![0x80 | round; 2 * FRAME as usize]).unwrap();
            let mut victim = d.client();
            let shown = victim.open(&secret, false);
            let pin = victim.pin(shown, 0..2 * FRAME, Mode::Read).unwrap();
            for (mapped, memory) in &kept {
                let strange = mapped.bytes().into_iter().find(|b| *b != 0x11 && *b != 0);
                assert_eq!(strange, None, "a byte of another file");
                let again = Mapped::new(memory.as_fd()).bytes();
                assert!(again.iter().all(|b| *b == 0x11 || *b == 0), "by a new mapping");
            }
            victim.release(pin).unwrap();
        }
        drop((kept, raw));
        d.ends_clean();
    });
}

/// The first use of memory by one client's file, the second by another's: what is left in the rest of the frame of a
/// short file is nobody's.
#[test]
fn a_frame_has_nothing_left_of_the_file_before() {
    alone(60, || {
        let d = daemon(1);
        let (secret, short) = (d.path("secret"), d.path("short"));
        std::fs::write(&secret, vec![0x99; FRAME as usize]).unwrap();
        std::fs::write(&short, [0x11; 10]).unwrap();
        let mut victim = d.client();
        let file = victim.open(&secret, false);
        // Never exported: the memory goes on to the next file.
        let pin = victim.pin(file, 0..FRAME, Mode::Read).unwrap();
        victim.release(pin).unwrap();
        let mut raw = d.client();
        let file = raw.open(&short, true);
        for (mode, range) in [(Mode::Read, 0..10), (Mode::Overwrite, 0..10)] {
            let pin = raw.pin(file, range, mode).unwrap();
            let memory = File::from(raw.frames(pin, 0, 1).unwrap().1.remove(0));
            let mut seen = vec![0; memory.metadata().unwrap().len() as usize];
            memory.read_exact_at(&mut seen, 0).unwrap();
            assert!(!seen.contains(&0x99), "bytes of the file before");
            raw.release(pin).unwrap();
        }
        drop((raw, victim));
        d.ends_clean();
    });
}
