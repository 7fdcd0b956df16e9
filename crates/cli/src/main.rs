//! `pageferry`: the page cache from the shell.
//!
//! Each command is a module; this file only routes, and turns errors into one line and a status.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod demo;
mod doctor;
mod io;
mod output;
mod run;
mod scratch;
mod setup;
mod size;
mod stat;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line()));
        eprintln!(
            "pageferry: internal error{}; please report it with the command that led here",
            place.unwrap_or_default()
        );
    }));
    let args = Args::parse();
    let result = std::panic::catch_unwind(|| match args.command {
        Command::Demo(args) => demo::demo(&args),
        Command::Run(args) => run::run(&args),
        Command::Io(args) => io::io(&args),
        Command::Stat(args) => stat::stat(&args),
        Command::Where(args) => stat::placement(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Bench(args) => bench::bench(&args),
    });
    match result {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) | Err(_) => ExitCode::FAILURE,
        Ok(Err(error)) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("pageferry: {error:#}");
            ExitCode::FAILURE
        }
    }
}
