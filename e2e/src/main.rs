//! `mctl-e2e`: the main job, the matrix and the benchmarks, on real guests.
//!
//! It only parses arguments, starts a runtime and sets the exit code: 0 if the command showed what
//! it claims, 1 if it did not or failed, 2 if the command line is invalid.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use e2e::{bench, leaks, main_job, matrix, output, peer, scale};

/// Suspend and resume real Linux machines, many times, and judge whether latency stays flat
#[derive(Debug, Parser)]
#[command(name = "mctl-e2e", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run chained cycles on one machine and judge them
    Cycles(main_job::Arguments),
    /// Run the cycles with each fix switched off on its own
    Matrix(matrix::Arguments),
    /// Measure suspend and resume, as ratios within one run
    Bench(bench::Arguments),
    /// Run cycles with programs that leak on purpose, and look for each leak; `./just leaks` has them
    #[command(hide = true)]
    Leaks(leaks::Arguments),
    /// Measure a peer on this machine; called by `cycles --vmm`
    #[command(hide = true)]
    Peer(peer::Arguments),
    /// Resume a guest with thousands of leaked pairs under each port policy; a part of `matrix`
    Scale(scale::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match arguments.command {
                Command::Cycles(arguments) => main_job::run(&arguments).await,
                Command::Matrix(arguments) => matrix::run(&arguments).await,
                Command::Bench(arguments) => bench::run(&arguments).await,
                Command::Leaks(arguments) => leaks::run(&arguments).await,
                Command::Peer(arguments) => peer::run(&arguments).await,
                Command::Scale(arguments) => scale::run(&arguments).await,
            }
        })
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
