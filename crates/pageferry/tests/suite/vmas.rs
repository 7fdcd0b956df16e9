//! Near the kernel's limit on mappings: room is left for the program, and what is away comes home.

use crate::common::{FRAME, PAGE, rig};
use pageferry::{After, Error, PinMode};
use pageferry_linux::limits::{max_map_count, vma_count};

/// Left to the program are a 64th of the limit and a few, before anything is away.
const FREE: usize = 800;

/// Mappings of the program's own.
struct Own(Vec<*mut libc::c_void>);

impl Own {
    fn map(&mut self, pages: usize, access: libc::c_int) -> bool {
        let (null, flags) = (std::ptr::null_mut(), libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let flags = flags | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where nothing is.
        let at = unsafe { libc::mmap(null, pages * PAGE as usize, access, flags, -1, 0) };
        if at != libc::MAP_FAILED {
            self.0.push(at);
        }
        at != libc::MAP_FAILED
    }

    /// So many mappings more, by every second page's protection.
    fn take(&mut self, count: usize) {
        assert!(self.map(count + 1, libc::PROT_NONE));
        let start = *self.0.last().unwrap();
        for n in (0..count).step_by(2) {
            let at = start.wrapping_byte_add(n * PAGE as usize);
            // SAFETY: a page of the mapping just made, which nothing uses.
            assert_eq!(unsafe { libc::mprotect(at, PAGE as usize, libc::PROT_READ) }, 0);
        }
    }

    /// As many as the kernel gives: one more than the limit.
    fn take_the_last(&mut self) {
        self.0.reserve(4096);
        while self.map(1, libc::PROT_READ) {}
    }
}

/// In a child process, as the limit is a process's.
#[test]
fn at_the_limit_of_mappings_the_program_has_room_and_all_comes_home() {
    const NAME: &str = "vmas::at_the_limit_of_mappings_the_program_has_room_and_all_comes_home";
    let limit = max_map_count().unwrap() as usize;
    if limit > 300_000 {
        return crate::skipped!("vm.max_map_count is {limit}");
    }
    if std::env::var_os("PAGEFERRY_CHILD").is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env("PAGEFERRY_CHILD", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("all is home"), "{child:?}");
        return;
    }
    let pages = 2048;
    let r = rig(pages * PAGE / FRAME);
    let f = r.file("a", pages * PAGE);
    let m = f.map(0..pages * PAGE, true).unwrap();
    let value = |page: usize| (page % 251) as u8 + 1;
    let keep_away = |page: usize| {
        let at = page as u64 * PAGE;
        let pin = f.pin(at..at + PAGE, PinMode::Write)?;
        pin.view()?.write(at, &[value(page)])?;
        pin.release_with(After::KeepAway)
    };
    let mut own = Own(Vec::new());
    let count = || vma_count().unwrap() as usize;
    own.take(limit - limit / 64 - FREE - count());

    let mut away = Vec::new();
    let refused = (0..pages as usize).step_by(2).find_map(|page| match keep_away(page) {
        Ok(_) => {
            away.push(page);
            None
        }
        Err(error) => Some(error),
    });
    assert!(matches!(refused, Some(Error::OutOfVmas { .. })), "{refused:?} of {}", away.len());
    assert!(away.len() > FREE / 4, "{} stretches are away", away.len());
    assert!(count() <= limit - limit / 64, "{} of {limit}", count());
    keep_away(1).expect("what touches an away stretch needs no mapping");
    away.push(1);
    std::thread::spawn(|| ()).join().expect("a thread");

    // The program takes its margin and one mapping more: nothing can be mapped.
    own.take_the_last();
    assert!(!own.map(1, libc::PROT_READ));
    let loads = |page: usize| {
        assert_eq!(m.load_u8(page * PAGE as usize).unwrap(), value(page), "page {page}");
    };
    let mut byte = [0];
    m.read(away[0] * PAGE as usize, &mut byte).expect("a touch of a part of a stretch");
    assert_eq!(byte[0], value(away[0]));
    loads(away[5]);
    // And what that gave up.
    own.take_the_last();
    f.flush(0..pages * PAGE).expect("flush");
    let touches = r.stat("touches");
    away.iter().for_each(|&page| loads(page));
    assert_eq!(r.stat("touches"), touches, "flush has left traps");
    let disk = r.on_disk("a");
    assert!(away.iter().all(|&page| disk[page * PAGE as usize] == value(page)));

    for at in own.0.drain(1..) {
        // SAFETY: one page that nothing uses.
        unsafe { libc::munmap(at, PAGE as usize) };
    }
    keep_away(4).expect("there is room again");
    loads(4);
    println!("all is home");
}
