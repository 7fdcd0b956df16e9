//! What belongs to one process, and is not its forked children's.
//!
//! A page that the kernel empties in every child (`MADV_WIPEONFORK`) tells the two apart for the
//! price of one load, which is cheap enough for every access through a map. A process id, asked of
//! the kernel or remembered, would be slower and wrong once ids are used again. A child made by
//! `vfork` or `clone(CLONE_VM)` shares the memory, and so is an owner as well; which is right, as
//! what is owned here are mappings.

mod descriptor;
mod guard;

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

pub(crate) use descriptor::LostInChildren;
pub(crate) use guard::GuardedRange;

/// The address space in which something was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    canary: &'static AtomicU32,
    generation: u32,
}

/// The canary, once there is one.
static CANARY: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());
/// The generation given out last. A child starts from its parent's, so that no generation comes
/// twice on the way from a process down to any of its descendants.
static LAST: AtomicU32 = AtomicU32::new(0);

impl Owner {
    /// The process that calls.
    ///
    /// Takes no lock: a child may call it whatever its parent's threads were doing.
    ///
    /// # Errors
    /// The kernel refuses a page of memory, or has no `MADV_WIPEONFORK` (before 4.14).
    pub(crate) fn current() -> io::Result<Owner> {
        let canary = canary()?;
        if canary.load(Ordering::Relaxed) == 0 {
            // The first caller in this process, or the first since it was forked.
            let fresh = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            let _ = canary.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed);
        }
        Ok(Owner { canary, generation: canary.load(Ordering::Relaxed) })
    }

    /// Whether the caller is in that process, and not in a child of it.
    #[inline]
    pub(crate) fn is_current(self) -> bool {
        self.canary.load(Ordering::Relaxed) == self.generation
    }
}

fn canary() -> io::Result<&'static AtomicU32> {
    let known = CANARY.load(Ordering::Acquire);
    if let Some(known) = NonNull::new(known) {
        // SAFETY: only ever set below, to a page that is never unmapped; see there.
        return Ok(unsafe { known.as_ref() });
    }
    let bytes = crate::page_bytes();
    let (null, prot) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: a mapping at an address of the kernel's choice takes the place of no other.
    let page = unsafe { mmap_anonymous(null, bytes, prot, MapFlags::PRIVATE) }?;
    let unmap = || {
        // SAFETY: mapped above and known to nobody.
        let _ = unsafe { munmap(page, bytes) };
    };
    // SAFETY: this advice changes nothing in this process.
    unsafe { madvise(page, bytes, Advice::LinuxWipeOnFork) }.inspect_err(|_| unmap())?;
    let page = page.cast::<AtomicU32>();
    let null = std::ptr::null_mut();
    let canary = match CANARY.compare_exchange(null, page, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => page,
        Err(first) => {
            unmap();
            first
        }
    };
    // SAFETY: a page of zeros is a valid `AtomicU32`, aligned; it stays mapped for ever, in children
    // as well, and is only accessed through such references.
    Ok(unsafe { &*canary })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_and_its_child_are_nobody_elses_owners() {
        let here = Owner::current().expect("owner");
        assert!(here.is_current() && Owner::current().expect("owner").is_current());
        let in_child = |body: &dyn Fn() -> bool| {
            // SAFETY: the child makes a few loads and exits.
            let pid = unsafe { libc::fork() };
            assert!(pid >= 0, "fork");
            if pid == 0 {
                let code = i32::from(!body());
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(code) };
            }
            let mut status = 0;
            // SAFETY: our own child.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
        };
        assert!(in_child(&|| {
            let foreign = !here.is_current();
            let child = Owner::current().expect("owner");
            foreign
                && child.is_current()
                && !here.is_current()
                && in_child(&|| {
                    let grandchild = Owner::current().expect("owner");
                    grandchild.is_current() && !child.is_current() && !here.is_current()
                })
        }));
        assert!(here.is_current());
    }
}
