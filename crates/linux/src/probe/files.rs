//! Hearing of what others do to a file.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{Attempt, Finding, last_error, require, scratch};
use crate::fanotify::{self, FAN_PRE_ACCESS};
use crate::file::HostFile;

pub(super) const ATTEMPTS: &[Attempt] = &[
    Attempt {
        name: "fine-timestamps",
        run: timestamps,
        then: "every completed change of a file shows in its timestamps",
        otherwise: "changes within one tick of the clock hide behind each other: stamps that are \
                    younger than a tick prove nothing",
    },
    Attempt {
        name: "leases",
        run: leases,
        then: "that nobody else has a file open can be proven, for files of one's own",
        otherwise: "that nobody else has a file open cannot be proven: copies serve one pin",
    },
    Attempt {
        name: "fanotify",
        run: notification,
        then: "that nobody has touched a file can be told in a microsecond",
        otherwise: "copies of files that could change serve one pin",
    },
    Attempt {
        name: "fanotify-overlays",
        run: overlays,
        then: "whoever changes a file through an overlay above it is heard of",
        otherwise: "copies of files that could change serve one pin",
    },
    Attempt {
        name: "fanotify-pre-content",
        run: pre_content,
        then: "other processes can be made to wait for what is away",
        otherwise: "other processes cannot be made to wait: without CAP_SYS_ADMIN and Linux 6.14 \
                    (or on tmpfs), what is away must be under a lease or come home at release",
    },
];

fn timestamps() -> Finding {
    const TRIES: u32 = 100;
    let file = scratch(1)?;
    let mut hidden = 0;
    for n in 0..TRIES {
        let before = file.observe().map_err(|e| e.to_string())?;
        file.write_at(&n.to_ne_bytes(), 0).map_err(|e| e.to_string())?;
        let after = file.observe().map_err(|e| e.to_string())?;
        hidden += u32::from(before.ctime == after.ctime);
    }
    let text = format!("{hidden} of {TRIES} writes right after a look left the ctime as it was");
    if hidden == 0 { Ok(text) } else { Err(text) }
}

fn leases() -> Finding {
    let file = scratch(1)?;
    let fd = file.as_fd().as_raw_fd();
    for kind in [libc::F_WRLCK, libc::F_UNLCK] {
        // SAFETY: takes numbers only; the descriptor is open.
        if unsafe { libc::fcntl(fd, libc::F_SETLEASE, kind) } != 0 {
            return Err(last_error("fcntl(F_SETLEASE)"));
        }
    }
    Ok("a write lease was granted on the only description of a file".to_owned())
}

fn notification() -> Finding {
    let group = fanotify::group(libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID).map_err(init)?;
    let file = scratch(1)?;
    watch(&group, &file, libc::FAN_MODIFY)?;
    file.write_at(&[2], 0).map_err(|e| e.to_string())?;
    let mut events = [0_u8; 4096];
    let told = rustix::io::read(&group, &mut events[..]).unwrap_or(0);
    require(told > 0, "a write was not told")?;
    Ok("a group without privileges was told of a write".to_owned())
}

fn overlays() -> Finding {
    let kernel = rustix::system::uname();
    crate::file::tells_through_overlays(kernel.release())?;
    Ok(format!("Linux {} tells, as all do since 6.5", kernel.release().to_string_lossy()))
}

fn pre_content() -> Finding {
    let group = fanotify::group(libc::FAN_CLASS_PRE_CONTENT).map_err(init)?;
    let file = scratch(1)?;
    // Nobody can open the nameless file, so nobody will wait for an answer.
    watch(&group, &file, FAN_PRE_ACCESS)?;
    Ok("a group that is asked before accesses was made".to_owned())
}

fn init(error: io::Error) -> String {
    format!("fanotify_init: {error}")
}

fn watch(group: &OwnedFd, file: &HostFile, events: u64) -> Result<(), String> {
    fanotify::mark(group, libc::FAN_MARK_ADD, events, file.as_fd())
        .map_err(|e| format!("fanotify_mark: {e}"))
}
