//! Another process that opens, changes, reads and keeps a file as it is told to.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;

use crate::calls::Shared;
use crate::ways::{self, PAGE};

const ROLE: &str = "PAGEFERRY_STRANGER";
/// Stands before an answer: the runner's own words may come first.
const MARK: &str = "stranger says ";

/// Not a test: where strangers start.
#[test]
fn role() {
    let Some(path) = std::env::var_os(ROLE) else { return };
    let mut me = Me { path: path.into(), file: None, map: None, place: None };
    for line in io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match me.obey(&words) {
            Ok(answer) => format!("ok {answer}"),
            Err(error) if ways::is_missing(&error) => format!("no {error}"),
            Err(error) => format!("failed {error}"),
        };
        println!("\n{MARK}{answer}");
    }
}

/// The stranger itself.
struct Me {
    path: PathBuf,
    file: Option<File>,
    map: Option<Shared>,
    place: Option<File>,
}

impl Me {
    fn obey(&mut self, words: &[&str]) -> io::Result<String> {
        let number = |at: usize| words[at].parse::<u64>().map_err(io::Error::other);
        let done = String::new();
        match words[0] {
            "open" => self.file = Some(ways::open(&self.path, words[1], true)?),
            "open-to-read" => self.file = Some(ways::open(&self.path, words[1], false)?),
            "map" => {
                let file = ways::open(&self.path, "pwrite", true)?;
                self.map = Some(Shared::new(&file, file.metadata()?.len(), true)?);
            }
            "store" => self.map()?.fill(number(1)? * PAGE, number(2)?),
            "go" => (self.file, self.map, self.place) = (None, None, None),
            "write" => {
                let (way, at, to) = (words[1], number(2)? * PAGE, number(3)?);
                self.with(way, true, |path, file| ways::write(path, file, way, at, to))?;
            }
            "read" => {
                let (way, at) = (words[1], number(2)? * PAGE);
                let page = self.with(way, false, |path, file| ways::read(path, file, way, at))?;
                let (least, most) = page.numbers();
                return Ok(format!("{least} {most}"));
            }
            "edit" => ways::edit(&self.path, self.file.as_ref(), words[1], number(2)?)?,
            "race" => self.race(words[1], number(2)?, number(3)?, number(4)?, words[5])?,
            other => {
                return crate::descriptors::obey(
                    other,
                    words,
                    &self.path,
                    &mut self.file,
                    &mut self.place,
                );
            }
        }
        Ok(done)
    }

    fn map(&self) -> io::Result<&Shared> {
        self.map.as_ref().ok_or_else(|| io::Error::other("nothing is mapped"))
    }

    /// With the file that is open, or one opened for this alone. The kernel interrupts a ring's worker
    /// that waits to be let through; then it is tried again, as its program would.
    fn with<T>(
        &self,
        way: &str,
        write: bool,
        work: impl Fn(&Path, &File) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            let done = match &self.file {
                Some(file) => work(&self.path, file),
                None => work(&self.path, &ways::open(&self.path, way, write)?),
            };
            match done {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// Writes to one page so many times, and publishes each number before and after; what the device
    /// has released of another page is there each time.
    fn race(&self, way: &str, mine: u64, theirs: u64, times: u64, board: &str) -> io::Result<()> {
        let board = Board::open(Path::new(board))?;
        for number in 1..=times {
            board.0.word(BEGUN).store(number, SeqCst);
            self.with(way, true, |path, file| ways::write(path, file, way, mine * PAGE, number))?;
            board.0.word(DONE).store(number, SeqCst);
            let released = board.0.word(RELEASED).load(SeqCst);
            let page = self.with(way, false, |path, file| {
                let way = if ways::is_direct(way) { "O_DIRECT" } else { "pread" };
                ways::read(path, file, way, theirs * PAGE)
            })?;
            let (least, _) = page.numbers();
            if least < released {
                return Err(io::Error::other(format!("saw {least} after {released}")));
            }
        }
        Ok(())
    }
}

const BEGUN: u64 = 0;
const DONE: u64 = 8;
const RELEASED: u64 = 16;

/// What is published in a race.
pub struct Board(Shared);

impl Board {
    pub fn create(path: &Path) -> io::Result<Board> {
        std::fs::write(path, [0; PAGE as usize])?;
        Board::open(path)
    }

    fn open(path: &Path) -> io::Result<Board> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Board(Shared::new(&file, PAGE, true)?))
    }

    pub fn done(&self) -> u64 {
        self.0.word(DONE).load(SeqCst)
    }

    pub fn begun(&self) -> u64 {
        self.0.word(BEGUN).load(SeqCst)
    }

    pub fn release(&self, number: u64) {
        self.0.word(RELEASED).store(number, SeqCst);
    }
}

/// The stranger as its parent knows it. It ends with its input.
pub struct Stranger {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Stranger {
    /// One that will work on the file at `path`.
    pub fn new(path: &Path) -> Stranger {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["stranger::role", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Stranger { orders: child.stdin.take(), child, answers }
    }

    pub fn order(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
    }

    /// What it answers to an order; `Err`: why that cannot be done here.
    #[track_caller]
    pub fn answer(&mut self) -> Result<String, String> {
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the stranger has ended");
            let Some(answer) = line.strip_prefix(MARK) else { continue };
            return match answer.trim().split_once(' ').unwrap_or((answer.trim(), "")) {
                ("ok", rest) => Ok(rest.to_owned()),
                ("no", why) => Err(why.to_owned()),
                (_, why) => panic!("the stranger has failed: {why}"),
            };
        }
    }

    #[track_caller]
    pub fn try_do(&mut self, order: &str) -> Result<String, String> {
        self.order(order);
        self.answer()
    }

    #[track_caller]
    pub fn does(&mut self, order: &str) -> String {
        self.try_do(order).unwrap_or_else(|why| panic!("{order}: {why}"))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // At its end of input it ends.
        self.orders = None;
        if std::thread::panicking() {
            // It may hang; it may have ended by itself.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
