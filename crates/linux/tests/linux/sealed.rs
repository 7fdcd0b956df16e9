//! Memory that is handed over.

use std::os::fd::{AsFd, OwnedFd};

use pageferry_linux::{MemoryWriter, NotSealed, SealedMemory, Socket};
use rustix::fs::{MemfdFlags, SealFlags};

#[test]
fn sealed_bytes_arrive_and_cannot_be_changed() {
    let mut writer = MemoryWriter::new().expect("memory");
    assert!(writer.is_empty());
    writer.append(b"records").expect("append");
    writer.append(&[9; 100_000]).expect("append");
    assert_eq!(writer.len(), 100_007);
    let memory = writer.seal().expect("seal");
    let (here, there) = Socket::pair().expect("pair");
    here.send(b"x", &[memory.as_fd()]).expect("send");
    let mut fds = Vec::new();
    there.recv(&mut [0; 1], &mut fds, 1).expect("recv");
    let received = SealedMemory::check(fds.remove(0), 100_007).expect("sealed");
    let mut buf = [0; 10];
    received.read_at(&mut buf, 4).expect("read");
    assert_eq!(&buf, b"rds\x09\x09\x09\x09\x09\x09\x09");
    let beyond = received.read_at(&mut buf, 100_000).expect_err("beyond the end");
    assert_eq!(beyond.kind(), std::io::ErrorKind::UnexpectedEof);
    assert!(received.read_at(&mut buf, u64::MAX).is_err());
    assert!(rustix::io::pwrite(&memory, b"x", 0).is_err());
    assert!(rustix::fs::ftruncate(&memory, 5).is_err());
    assert!(rustix::fs::ftruncate(&memory, 200_000).is_err());
}

#[test]
fn what_can_be_changed_is_refused() {
    let enough = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let memory = |seals: SealFlags| -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("test", flags).expect("memfd");
        rustix::fs::ftruncate(&fd, 10).expect("truncate");
        rustix::fs::fcntl_add_seals(&fd, seals).expect("seal");
        fd
    };
    assert!(SealedMemory::check(memory(enough), 10).is_ok());
    for missing in enough.iter() {
        let checked = SealedMemory::check(memory(enough - missing), 10);
        assert!(matches!(checked, Err(NotSealed::Open)), "{missing:?}: {checked:?}");
    }
    for expected in [0, 9, 11] {
        let checked = SealedMemory::check(memory(enough), expected);
        let size =
            matches!(checked, Err(NotSealed::Size { found: 10, expected: e }) if e == expected);
        assert!(size, "{checked:?}");
    }
}

#[test]
fn other_files_are_refused() {
    let not_memory = |fd: OwnedFd, what: &str| {
        let checked = SealedMemory::check(fd, 0);
        assert!(
            matches!(checked, Err(NotSealed::NotMemory | NotSealed::Open)),
            "{what}: {checked:?}"
        );
    };
    not_memory(tempfile::tempfile().expect("file").into(), "a file");
    not_memory(tempfile::tempfile_in("/dev/shm").expect("file").into(), "a file of tmpfs");
    not_memory(std::fs::File::open("/").expect("open").into(), "a directory");
    not_memory(std::fs::File::open("/dev/null").expect("open").into(), "a device");
    not_memory(std::io::pipe().expect("pipe").0.into(), "a pipe");
    let flags = rustix::fs::OFlags::PATH;
    let path = rustix::fs::open("/", flags, rustix::fs::Mode::empty()).expect("open");
    not_memory(path, "a place");
}
