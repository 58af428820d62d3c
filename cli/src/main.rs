//! `mctl`: arguments in, exit code out. Nothing is decided here.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod error;
mod machine_ref;
mod output;
mod readiness;
mod session;
mod settings;
mod span;
mod terminal;
mod transition;
mod wording;

use std::process::ExitCode;

fn main() -> ExitCode {
    args::run(std::env::args_os())
}
