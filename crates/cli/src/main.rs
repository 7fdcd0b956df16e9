//! `pageferry`: the page cache from the shell.
//!
//! Each command is a module; this file only routes, and turns errors into one line and a status.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod demo;
mod doctor;
mod failure;
mod io;
mod load;
mod output;
mod run;
mod scratch;
mod serve;
mod setup;
mod size;
mod stat;
mod top;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line()));
        output::complain(&format!(
            "internal error{}; please report it with the command that led here",
            place.unwrap_or_default()
        ));
    }));
    let command = Args::parse().command;
    match std::panic::catch_unwind(|| run(&command)) {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) | Err(_) => ExitCode::FAILURE,
        Ok(Err(error)) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            report(&command, &error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Demo(args) => demo::demo(args),
        Command::Run(args) => run::run(args),
        Command::Io(args) => io::io(args),
        Command::Stat(args) => stat::stat(args),
        Command::Where(args) => stat::placement(args),
        Command::Serve(args) => serve::serve(args),
        Command::Load(args) => load::load(args),
        Command::Drop(args) => load::drop_files(args),
        Command::Top(args) => top::top(args),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Bench(args) => bench::bench(args),
        Command::Outsider => bench::serve(),
    }
}

/// Says to people what went wrong, and to programs that asked for it as the last line.
fn report(command: &Command, error: &anyhow::Error) {
    let failure = Failure::of(error);
    output::complain(&failure.message);
    if command.json() {
        let mut object = failure.fields();
        object.insert("cmd".into(), command.name().into());
        // It was said on standard error; there is nobody else to tell.
        let _ = output::line(serde_json::Value::Object(object).to_string());
    }
}
