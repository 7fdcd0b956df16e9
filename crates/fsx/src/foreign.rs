//! The other process: this program again, told what to do through a pipe.
//!
//! A line with an access goes down, `ok N` and N bytes come up, or `err ERRNO`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};

use crate::op::Access;
use crate::plain::PlainFile;

/// The hidden first argument that makes this program the other process.
pub(crate) const COMMAND: &str = "__foreign";

pub(crate) struct Foreign {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Foreign {
    pub(crate) fn start(path: &Path) -> anyhow::Result<Foreign> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut child = Command::new(program)
            .arg(COMMAND)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the other process")?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the other process has no pipes");
        };
        Ok(Foreign { child, to: Some(to), from: BufReader::new(from) })
    }

    /// Performs one access there; the inner result is the access's own.
    pub(crate) fn perform(&mut self, access: &Access) -> anyhow::Result<Result<Vec<u8>, i32>> {
        let to = self.to.as_mut().context("the other process has ended")?;
        writeln!(to, "{access}").and_then(|()| to.flush()).context("telling the other process")?;
        let mut line = String::new();
        self.from.read_line(&mut line).context("hearing from the other process")?;
        let answer = line.trim().split_once(' ').and_then(|(w, n)| Some((w, n.parse().ok()?)));
        match answer {
            Some(("err", errno)) => Ok(Err(errno)),
            Some(("ok", bytes)) => {
                let mut payload = vec![0; usize::try_from(bytes).unwrap_or(0)];
                self.from.read_exact(&mut payload).context("hearing from the other process")?;
                Ok(Ok(payload))
            }
            _ => bail!("the other process ended or answered '{}' to: {access}", line.trim()),
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It ends when nobody talks to it any more.
        drop(self.to.take());
        let _ = self.child.wait();
    }
}

/// The other process's life.
pub(crate) fn live(path: &Path) -> anyhow::Result<()> {
    let mut file = PlainFile::new(path, "foreign");
    let mut up = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let access: Access = line?.parse().map_err(anyhow::Error::msg)?;
        match file.perform(&access) {
            Ok(bytes) => {
                writeln!(up, "ok {}", bytes.len())?;
                up.write_all(&bytes)?;
            }
            Err(error) => writeln!(up, "err {}", errno(&error))?,
        }
        up.flush()?;
    }
    Ok(())
}

/// The system's number for an error; `EINVAL` for those that never came from the system.
pub(crate) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(rustix::io::Errno::INVAL.raw_os_error())
}
