//! How strangers come by descriptors, other than by opening a file by its name.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::ways::{PAGE, Page};

/// Orders to a stranger about its descriptors.
pub fn obey(
    order: &str,
    words: &[&str],
    path: &Path,
    file: &mut Option<File>,
    place: &mut Option<File>,
) -> io::Result<String> {
    let has = |file: &Option<File>| match file {
        Some(file) => file.try_clone(),
        None => Err(io::Error::other("nothing is open")),
    };
    match order {
        "place" => {
            *place = Some(File::options().read(true).custom_flags(libc::O_PATH).open(path)?);
        }
        // Whatever it has, once more, for writing.
        "reopen" => {
            let old = place.as_ref().or(file.as_ref());
            let old = old.ok_or_else(|| io::Error::other("nothing is open"))?;
            let name = format!("/proc/self/fd/{}", old.as_raw_fd());
            *file = Some(File::options().read(true).write(true).open(name)?);
        }
        "times" => {
            let when = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(nanos(words[1])?);
            let times = std::fs::FileTimes::new().set_accessed(when).set_modified(when);
            has(file)?.set_times(times)?;
        }
        // Gives the descriptor to a child that writes to it when something comes, and closes its own.
        "bequeath" => {
            let (here, there) = UnixStream::pair()?;
            let heir = file.take().ok_or_else(|| io::Error::other("nothing is open"))?;
            // SAFETY: the child makes system calls only, and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                drop(here);
                let page = Page::of(7);
                let told = rustix::io::read(&there, &mut [0; 1][..]);
                let wrote = told.is_ok_and(|n| n == 1) && heir.write_all_at(&page.0, PAGE).is_ok();
                let _ = rustix::io::write(&there, &[u8::from(wrote)]);
                // Whoever told it now learns of the end of this process.
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(0) };
            }
            drop((heir, there));
            // The number of this end is its name from here on.
            return Ok(OwnedFd::from(here).into_raw().to_string());
        }
        "heir-writes" => {
            let heir = adopt(words[1])?;
            rustix::io::write(&heir, &[1])?;
            let mut answer = [0];
            rustix::io::read(&heir, &mut answer[..])?;
            // Its end shows as the end of the stream, by which its descriptors are closed.
            let _ = rustix::io::read(&heir, &mut [0; 1][..]);
            if answer != [1] {
                return Err(io::Error::other("the heir could not write"));
            }
        }
        // Puts the descriptor into a socket and closes it: the socket alone has it then.
        "post" => {
            let (here, there) = UnixStream::pair()?;
            send(&here, &file.take().ok_or_else(|| io::Error::other("nothing is open"))?)?;
            let numbers = [OwnedFd::from(here).into_raw(), OwnedFd::from(there).into_raw()];
            return Ok(format!("{} {}", numbers[0], numbers[1]));
        }
        "receive" => {
            drop(adopt(words[1])?);
            *file = Some(receive(&UnixStream::from(adopt(words[2])?))?);
        }
        _ => return Err(io::Error::other(format!("no such order: {order}"))),
    }
    Ok(String::new())
}

fn nanos(word: &str) -> io::Result<u64> {
    word.parse().map_err(io::Error::other)
}

/// A descriptor that becomes a number, to be adopted later.
trait IntoRaw {
    fn into_raw(self) -> i32;
}

impl IntoRaw for OwnedFd {
    fn into_raw(self) -> i32 {
        std::os::fd::IntoRawFd::into_raw_fd(self)
    }
}

fn adopt(word: &str) -> io::Result<OwnedFd> {
    let number = word.parse().map_err(io::Error::other)?;
    // SAFETY: given away as a number by an earlier order, and adopted once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

const CONTROL_BYTES: usize = 64;

/// Room for one control message.
#[repr(align(8))]
struct Control([u8; CONTROL_BYTES]);

fn message(part: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: a `msghdr` of zeros is one without anything.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES;
    header
}

/// Where the descriptor stands behind the head of a control message, by the kernel's definition.
const HEAD_BYTES: usize = size_of::<libc::cmsghdr>();

fn send(socket: &UnixStream, file: &File) -> io::Result<()> {
    let mut byte = [1_u8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = Control([0; CONTROL_BYTES]);
    control.0[..8].copy_from_slice(&(HEAD_BYTES + 4).to_ne_bytes());
    control.0[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control.0[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    control.0[HEAD_BYTES..HEAD_BYTES + 4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
    let mut header = message(&mut part, &mut control);
    header.msg_controllen = (HEAD_BYTES + 4).next_multiple_of(8);
    // SAFETY: all that the header points to is alive, and as long as it says.
    match unsafe { libc::sendmsg(socket.as_raw_fd(), &header, 0) } {
        1 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn receive(socket: &UnixStream) -> io::Result<File> {
    let mut byte = [0_u8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = Control([0; CONTROL_BYTES]);
    let mut header = message(&mut part, &mut control);
    // SAFETY: all that the header points to is alive and writable, and as long as it says.
    if unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_CMSG_CLOEXEC) } != 1 {
        return Err(io::Error::last_os_error());
    }
    let number = control.0[HEAD_BYTES..].first_chunk().map(|n| i32::from_ne_bytes(*n));
    let number = number.filter(|n| *n > 2).ok_or_else(|| io::Error::other("no descriptor came"))?;
    // SAFETY: received just now, and known to nobody else.
    Ok(unsafe { File::from_raw_fd(number) })
}

const _: () = assert!(HEAD_BYTES == 16, "of 64-bit Linux");
