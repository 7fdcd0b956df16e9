//! A script: lines, one after the other, and what they print.

use std::io::{self, BufRead, BufWriter, IsTerminal, Write};

use serde_json::{Map, Value};

use super::command::Reply;
use super::parse;
use super::session::{Done, Session};
use crate::args::IoArgs;
use crate::failure::Failure;
use crate::output::{complain, dump};

pub(super) struct Script {
    session: Session,
    json: bool,
    stops: bool,
    /// Nobody takes our output any more; what the lines do may matter all the same.
    mute: bool,
    ok: bool,
}

impl Script {
    pub(super) fn new(session: Session, args: &IoArgs) -> Script {
        Script { session, json: args.json, stops: args.exit_on_error, mute: false, ok: true }
    }

    /// Runs the lines of standard input.
    pub(super) fn read(&mut self) {
        let mut input = io::stdin().lock();
        // A program that reads our output is not to find prompts in it.
        let prompts = input.is_terminal() && io::stdout().is_terminal() && !self.json;
        loop {
            if prompts {
                self.print(|out| write!(out, "pageferry> "));
            }
            let mut line = Vec::new();
            match input.read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(_) if self.step(&line) => {}
                Ok(_) => return,
                Err(error) => {
                    complain(&format!("reading commands: {error}"));
                    self.ok = false;
                    return;
                }
            }
        }
    }

    /// Runs one line. `false`: no more.
    pub(super) fn step(&mut self, line: &[u8]) -> bool {
        let text = String::from_utf8_lossy(line);
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            return true;
        }
        if matches!(text.split_whitespace().next(), Some("quit" | "q" | "exit")) {
            return false;
        }
        let result = match std::str::from_utf8(line) {
            Ok(_) => parse::parse(text).and_then(|command| self.session.run(command)),
            Err(_) => Err(Failure::usage("the line is not UTF-8")),
        };
        let ok = result.is_ok();
        self.ok &= ok;
        if self.json {
            self.print_json(text, result)
        } else {
            self.print_text(text, result)
        }
        ok || !self.stops
    }

    fn print_json(&mut self, text: &str, result: Done) {
        let word = text.split_whitespace().next().unwrap_or_default();
        let word = if text.starts_with('!') { "!" } else { word };
        let mut object = match result {
            Ok(reply) => succeeded(reply),
            Err(failure) => failure.fields(),
        };
        object.insert("cmd".into(), word.into());
        object.insert("line".into(), text.into());
        self.print(|out| writeln!(out, "{}", Value::Object(object)));
    }

    fn print_text(&mut self, text: &str, result: Done) {
        match result {
            Ok(reply) => self.print(|out| {
                if let Some((start, bytes)) = &reply.dump {
                    dump(*start, bytes).try_for_each(|row| writeln!(out, "{row}"))?;
                }
                reply.lines.iter().try_for_each(|line| writeln!(out, "{line}"))
            }),
            Err(failure) => {
                if let Some(output) = failure.output.as_deref().filter(|o| !o.is_empty()) {
                    self.print(|out| writeln!(out, "{output}"));
                }
                complain(&format!("{text}: {}", failure.message));
            }
        }
    }

    /// Prints unless nobody listens. A reader that has gone is no failure of ours.
    fn print(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        if self.mute {
            return;
        }
        let mut out = BufWriter::new(io::stdout().lock());
        let Err(error) = write(&mut out).and_then(|()| out.flush()) else { return };
        // Not again when it is dropped.
        let _ = out.into_parts();
        self.mute = true;
        if error.kind() != io::ErrorKind::BrokenPipe {
            complain(&format!("standard output: {error}"));
            self.ok = false;
        }
    }

    /// Ends the session; whether all went well.
    pub(super) fn end(self) -> bool {
        let problems = self.session.close();
        problems.iter().for_each(|problem| complain(&format!("at the end: {problem}")));
        self.ok && problems.is_empty()
    }
}

fn succeeded(reply: Reply) -> Map<String, Value> {
    let mut object = reply.fields;
    object.insert("ok".into(), true.into());
    object.insert("error".into(), Value::Null);
    object
}
