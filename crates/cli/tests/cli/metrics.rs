//! What a daemon tells Prometheus.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::daemon::{Daemon, eventually};

fn start() -> (Daemon, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics");
    (Daemon::start(&["--metrics", path.to_str().unwrap()]), path, dir)
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// What is answered to a request, until the connection ends.
fn answer(path: &Path, request: &[u8]) -> String {
    let mut stream = connect(path);
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Type, help and value of each metric.
fn metrics(path: &Path) -> BTreeMap<String, (String, String, u64)> {
    let answer = answer(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    let mut metrics = BTreeMap::new();
    let lines: Vec<&str> = body.lines().collect();
    for metric in lines.chunks(3) {
        let [help, kind, value] = metric else { panic!("{metric:?}") };
        let (name, help) = help.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
        let kind = kind.strip_prefix(&format!("# TYPE {name} ")).unwrap();
        let value = value.strip_prefix(&format!("{name} ")).unwrap().parse().unwrap();
        let told = (kind.to_owned(), help.to_owned(), value);
        assert!(metrics.insert(name.to_owned(), told).is_none(), "{name} twice");
    }
    metrics
}

#[test]
fn every_metric_is_documented_as_it_is_served() {
    let (_daemon, path, _dir) = start();
    let doc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let doc = std::fs::read_to_string(doc).unwrap();
    let mut documented = BTreeMap::new();
    for row in doc.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, unit, meaning] = cells[..] else { panic!("{row}") };
        let name = name.trim_matches('`').to_owned();
        let is_bytes = name.trim_end_matches("_total").ends_with("_bytes");
        assert_eq!(unit, if is_bytes { "bytes" } else { "count" }, "{row}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{row}");
        documented.insert(name, (kind.to_owned(), meaning.to_owned()));
    }
    let served = metrics(&path).into_iter().map(|(name, (kind, help, _))| (name, (kind, help)));
    assert_eq!(documented, served.collect());
}

#[test]
fn metrics_tell_what_the_cache_does() {
    let (mut daemon, path, _dir) = start();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let file = daemon.file("file", 1 << 20);
    let mut client = daemon.client(&file);
    client.does("pin 0 1m");
    let value = |name: &str| metrics(&path)[name].2;
    assert_eq!(value("pageferry_fetched_bytes_total"), 1 << 20);
    assert_eq!(value("pageferry_pinned_bytes_total"), 1 << 20);
    assert_eq!((value("pageferry_live_pins"), value("pageferry_sessions")), (1, 1));
    client.kill();
    assert!(eventually(|| value("pageferry_sessions") == 0));
    assert_eq!((value("pageferry_live_pins"), value("pageferry_pins_total")), (0, 1));
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().success());
    assert!(!path.exists(), "the socket is left");
}

#[test]
fn nobody_keeps_others_from_the_metrics() {
    let (mut daemon, path, _dir) = start();
    // They say nothing, or not enough, and wait.
    let silent = connect(&path);
    let mut slow = connect(&path);
    slow.write_all(b"GET / HT").unwrap();
    assert!(metrics(&path).contains_key("pageferry_pins_total"));
    for mut given_up in [silent, slow] {
        let mut rest = Vec::new();
        // Its end, however it comes.
        let _ = given_up.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
    // One that asks and goes, and one that never ends.
    connect(&path).write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut endless = connect(&path);
    let ended = (0..10_000).any(|_| endless.write_all(&[b'x'; 1024]).is_err());
    assert!(ended, "all of an endless request was taken");
    assert!(answer(&path, b"POST / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 405 "));
    assert!(metrics(&path).contains_key("pageferry_pins_total"));
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().success());
}

#[test]
fn a_socket_that_nobody_listens_to_is_replaced() {
    let (mut daemon, path, dir) = start();
    daemon.signal(Signal::KILL);
    daemon.ended();
    assert!(path.exists());
    let again = Daemon::start(&["--metrics", path.to_str().unwrap()]);
    assert!(metrics(&path).contains_key("pageferry_pins_total"));
    let file = again.file("file", 0);
    let other = dir.path().join("other");
    let args = ["serve", "--device-memory", "1m", "--frame", "64k", "--socket"];
    let args =
        [&args[..], &[other.to_str().unwrap(), "--metrics", path.to_str().unwrap()]].concat();
    let output = crate::pageferry(&args, &file);
    assert_eq!(output.status.code(), Some(1));
    assert!(crate::errors(&output).contains("in use"), "{}", crate::errors(&output));
    assert!(metrics(&path).contains_key("pageferry_pins_total"));
}
