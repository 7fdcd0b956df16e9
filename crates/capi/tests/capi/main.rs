//! The C library as C programs get it: header, shared library, symbols, example.

mod addresses;
mod example;
mod header;
mod held;
mod misuse;
mod symbols;

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use pageferry::serve::{Limits, Listener};
use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{CacheConfig, Server};

/// The crate.
pub(crate) fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a command printed; it must have succeeded.
pub(crate) fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
    stdout.into_owned()
}

/// Where `scripts/install-capi` has put what this test was built with. The script runs cargo, which finds next to
/// nothing to do: the lock of the target directory is free while tests run.
pub(crate) fn installed() -> &'static Path {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // target/debug/deps/capi-...
        let exe = std::env::current_exe().unwrap();
        let built = exe.parent().and_then(Path::parent).unwrap();
        let target = built.parent().unwrap();
        let profile = match built.file_name().and_then(|name| name.to_str()) {
            Some("debug") => "dev",
            Some(profile) => profile,
            None => panic!("{} is in no target directory", exe.display()),
        };
        let prefix = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("prefix");
        let mut script = Command::new(here().join("../../scripts/install-capi"));
        script.arg(&prefix).env("PROFILE", profile).env("CARGO_TARGET_DIR", target);
        run(script.env("CARGO", env!("CARGO")).env_remove("DESTDIR"));
        prefix
    })
}

/// A daemon in this process.
pub(crate) struct Daemon {
    /// Before the directory, which holds its socket.
    _server: Server,
    pub(crate) socket: PathBuf,
    _dir: tempfile::TempDir,
}

pub(crate) fn daemon() -> Daemon {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let soft = SoftConfig { frame_bytes: 64 << 10, capacity_bytes: 16 << 20, ..Default::default() };
    let device = SoftDevice::new(SoftConfig { exportable: true, ..soft }).unwrap();
    let listener = Listener::bind(&socket, 0o600).unwrap();
    let config = CacheConfig::default();
    let server =
        Server::start(std::sync::Arc::new(device), config, Limits::default(), listener).unwrap();
    Daemon { _server: server, socket, _dir: dir }
}

/// A call that has to succeed.
#[track_caller]
pub(crate) fn good(result: i32) {
    assert_eq!(result, 0, "{}: {}", kind(), text());
}

/// A call that has to fail, with a number and a kind.
#[track_caller]
pub(crate) fn bad(result: i32, errno: i32, expected: &str) {
    assert_eq!((result, kind().as_str()), (-errno, expected), "{}", text());
    assert!(!text().is_empty());
}

fn kind() -> String {
    // SAFETY: a string until this thread's next call that fails.
    unsafe { CStr::from_ptr(pageferry_c::pf_error_kind()) }.to_str().unwrap().to_owned()
}

fn text() -> String {
    // SAFETY: a string until this thread's next call that fails.
    unsafe { CStr::from_ptr(pageferry_c::pf_error_text()) }.to_str().unwrap().to_owned()
}
