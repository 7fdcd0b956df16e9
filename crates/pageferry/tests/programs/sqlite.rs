//! SQLite, which maps its index of the log, and its whole database if it is told to.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{beside_us, installed, rounds};

fn sqlite(db: &Path, script: &str) -> Vec<u8> {
    let mut child = Command::new("sqlite3")
        .args(["-batch", "-bail"])
        .arg(db)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{script}: {said}");
    out.stdout
}

fn transactions(dir: &Path, settings: &str) -> Vec<u8> {
    let db = dir.join("db");
    let tell = |script: &str| sqlite(&db, &format!(".timeout 20000\n{settings}\n{script}"));
    tell(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, word INT, filling BLOB); CREATE INDEX i ON t(word);",
    );
    for round in 0..20 * rounds() {
        // The filling is made of numbers, not at random: two runs do the same.
        tell(&format!(
            "BEGIN; WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 300)
             INSERT INTO t(word, filling) SELECT x * 7919 % 1009 + {round},
                 printf('%0*d', 100 + x * 13 % 900, x * {round}) FROM n; COMMIT;
             UPDATE t SET filling = filling || 'x{round}' WHERE word % 7 = {round} % 7;
             DELETE FROM t WHERE id % 5 = {round} % 5 AND word > 500;"
        ));
        match round % 5 {
            1 => drop(tell("PRAGMA wal_checkpoint(TRUNCATE);")),
            3 => drop(tell("VACUUM;")),
            _ => {}
        }
    }
    let check = tell("PRAGMA integrity_check;");
    assert!(String::from_utf8_lossy(&check).lines().any(|line| line == "ok"), "{check:?}");
    sqlite(&db, ".dump\n")
}

#[test]
fn sqlite_with_a_log() {
    if installed("sqlite3") {
        beside_us("sqlite, write-ahead log", |dir| {
            transactions(dir, "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")
        });
    }
}

#[test]
fn sqlite_with_a_mapping() {
    if installed("sqlite3") {
        beside_us("sqlite, database mapped", |dir| {
            transactions(dir, "PRAGMA mmap_size=268435456; PRAGMA journal_mode=TRUNCATE;")
        });
    }
}

#[test]
fn sqlite_with_a_log_and_a_mapping() {
    if installed("sqlite3") {
        beside_us("sqlite, log and mapping", |dir| {
            transactions(dir, "PRAGMA mmap_size=268435456; PRAGMA journal_mode=WAL;")
        });
    }
}
