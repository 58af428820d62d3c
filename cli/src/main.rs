//! `mctl`, the command line of the Machines API. [`command_line`] parses and runs; `commands` has a
//! file for each command.

#![forbid(unsafe_code)]

mod arguments;
mod command_line;
mod commands;
mod confirm;
mod cycle_report;
mod each_machine;
mod error;
mod output;
mod parse;
mod readiness;
mod session;
mod settings;
mod terminal;
mod transition;
mod units;
mod wording;

use std::process::ExitCode;

fn main() -> ExitCode {
    command_line::run(std::env::args_os())
}
