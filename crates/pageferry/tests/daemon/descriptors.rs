//! Descriptors that are not what they should be.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::common::*;
use crate::raw::*;
use pageferry_wire::*;

#[test]
fn a_message_has_the_descriptors_that_belong_to_it() {
    alone(60, || {
        let d = daemon(4);
        let file = std::fs::File::open(d.file("a")).unwrap();
        let fd = file.as_fd();
        let open = || Request::Open { name: "a".into(), writable: false };
        let stores = Stores { file: FileId(1), runs: 0, bytes: 0 };
        let cases: Vec<(Request, Vec<BorrowedFd<'_>>)> = vec![
            (open(), vec![]),
            (Request::Stats, vec![fd]),
            (Request::Release { pins: vec![], stores: None }, vec![fd]),
            (Request::Release { pins: vec![], stores: Some(stores) }, vec![]),
        ];
        for (request, fds) in cases {
            let mut raw = d.client();
            is_protocol(raw.call(request, &fds));
            raw.hangs_up();
        }
        for count in [2, 64] {
            let mut raw = d.client();
            raw.send(open(), &vec![fd; count]);
            raw.hangs_up();
        }
        // More than a `Socket` sends, and the most that the kernel takes.
        let raw = d.client();
        let packet = encode_call(&Call { id: 9, request: open() }).unwrap();
        send_many(raw.socket.as_fd(), &packet, &vec![fd.as_raw_fd(); 253]);
        raw.hangs_up();
        drop((raw, file));
        d.ends_clean();
    });
}

fn send_many(socket: BorrowedFd<'_>, packet: &[u8], fds: &[i32]) {
    let bytes = size_of_val(fds);
    // SAFETY: a computation.
    let space = unsafe { libc::CMSG_SPACE(bytes as u32) };
    // SAFETY: a computation.
    let len = unsafe { libc::CMSG_LEN(bytes as u32) };
    let mut control = vec![0u64; (space as usize).div_ceil(8)];
    let mut iov =
        libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
    // SAFETY: a structure of numbers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = space as usize;
    let head = libc::cmsghdr {
        cmsg_len: len as usize,
        cmsg_level: libc::SOL_SOCKET,
        cmsg_type: libc::SCM_RIGHTS,
    };
    // SAFETY: the control buffer is aligned and has room for the header.
    unsafe { control.as_mut_ptr().cast::<libc::cmsghdr>().write(head) };
    // SAFETY: the header is followed by room for the descriptors.
    let data = unsafe { control.as_mut_ptr().cast::<u8>().add(size_of::<libc::cmsghdr>()) };
    // SAFETY: as above; the ranges are different.
    unsafe { std::ptr::copy_nonoverlapping(fds.as_ptr().cast(), data, bytes) };
    // SAFETY: all that the message points to lives as long as the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    assert_eq!(sent, packet.len() as isize, "{}", std::io::Error::last_os_error());
}

fn open_as(path: &str, flags: i32) -> OwnedFd {
    let file = std::fs::File::options().read(true).custom_flags(flags).open(path);
    file.unwrap_or_else(|e| panic!("{path}: {e}")).into()
}

fn made(fd: i32) -> OwnedFd {
    assert!(fd >= 0);
    // SAFETY: just made, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
fn only_regular_files_that_can_be_read_are_taken() {
    alone(60, || {
        let d = daemon(4);
        let path = d.file("a");
        let text = path.to_str().unwrap();
        let (pipe, other_end) = std::io::pipe().unwrap();
        let (socket, peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let fifo = CString::new(d.path("fifo").to_str().unwrap()).unwrap();
        // SAFETY: a string that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        let write_only: OwnedFd = std::fs::File::options().write(true).open(&path).unwrap().into();
        let dir = d.dir.path().to_str().unwrap();
        // SAFETY: makes a descriptor of its own.
        let event = made(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) });
        // SAFETY: makes a descriptor of its own.
        let epoll = made(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) });
        // SAFETY: makes a descriptor of its own.
        let pid_fd =
            made(unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) as i32 });
        let bad: Vec<(&str, OwnedFd)> = vec![
            ("a pipe", pipe.into()),
            ("a socket", socket.into()),
            ("a FIFO", open_as(d.path("fifo").to_str().unwrap(), libc::O_NONBLOCK)),
            ("a directory", open_as(dir, libc::O_DIRECTORY)),
            ("O_PATH", open_as(text, libc::O_PATH)),
            ("O_PATH of a directory", open_as(dir, libc::O_PATH)),
            ("write only", write_only),
            ("the process's memory", open_as("/proc/self/mem", 0)),
            ("a file of /proc", open_as("/proc/self/maps", 0)),
            ("a file of /sys", open_as("/sys/kernel/mm/transparent_hugepage/enabled", 0)),
            ("a character device", open_as("/dev/null", 0)),
            ("an eventfd", event),
            ("an epoll", epoll),
            ("a pidfd", pid_fd),
        ];
        let mut raw = d.client();
        for (what, fd) in &bad {
            let taken = raw.show(fd.as_fd(), false);
            assert!(taken.is_err(), "{what} is taken");
            println!("{what}: {taken:?}");
        }
        // The session is as it was.
        let file = raw.open(&path, false);
        let pin = raw.pin(file, 0..FRAME, Mode::Read).unwrap();
        raw.release(pin).unwrap();
        // One that is open for reading only, said to be for writing.
        let reading = std::fs::File::open(&path).unwrap();
        let refused = raw.show(reading.as_fd(), true);
        assert!(matches!(refused, Err(Failure::ReadOnly(_))), "{refused:?}");
        drop((raw, bad, reading, other_end, peer));
        d.ends_clean();
    });
}

/// A memory file is a file like another, and a frame's own memory is one that nobody can write.
#[test]
fn memory_files_are_files() {
    alone(60, || {
        let d = daemon(8);
        let path = d.file("a");
        let mut raw = d.client();
        let memory = sealed(&pattern(FRAME));
        let file = raw.show(memory.as_fd(), false).unwrap();
        same(&raw.read(file, 0, 4096).unwrap(), &pattern(FRAME)[..4096], "a sealed memory file");
        let shown = raw.open(&path, false);
        let pin = raw.pin(shown, 0..FRAME, Mode::Read).unwrap();
        let frame = raw.frames(pin, 0, 1).unwrap().1.remove(0);
        let refused = raw.show(frame.as_fd(), true);
        assert!(matches!(refused, Err(Failure::ReadOnly(_))), "{refused:?}");
        let nested = raw.show(frame.as_fd(), false).unwrap();
        let refused = raw.pin(nested, 0..4096, Mode::Write);
        assert!(matches!(refused, Err(Failure::ReadOnly(_))), "{refused:?}");
        same(&raw.read(nested, 0, 4096).unwrap(), &pattern(FILE)[..4096], "a frame as a file");
        raw.release(pin).unwrap();
        drop((raw, frame, memory));
        d.ends_clean();
    });
}
