//! `mctl-e2e`: the main job, the matrix and the benchmarks, on real guests.
//!
//! It only parses arguments, starts a runtime and sets the exit code: 0 if the command showed what
//! it claims, 1 if it did not or failed, 2 if the command line is invalid, 3 if the cycles were too
//! few to decide.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use e2e::ending::Ending;
use e2e::{
    bench, bench_here, leaks, main_job, matrix, output, proof, run_here, scale, upgrade,
    upgrade_here,
};

/// Suspend and resume real Linux machines, many times, and judge whether latency stays flat
#[derive(Debug, Parser)]
#[command(
    name = "mctl-e2e",
    version,
    after_help = "Exit codes: 0 shown, 1 not shown or failed, 2 the command line is not valid, 3 undecided"
)]
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
    /// Run the cycles and every test on real guests on each kind of KVM that this machine can offer
    Proof(proof::Arguments),
    /// Measure suspend and resume, as ratios within one run
    Bench(bench::Arguments),
    /// Run cycles with programs that leak on purpose, and look for each leak; `./just leaks` has them
    #[command(hide = true)]
    Leaks(leaks::Arguments),
    /// Run cycles on this very host; called by the other commands
    #[command(hide = true)]
    RunHere(run_here::Arguments),
    /// Hand running and suspended machines from the release before to this one and back; `./just upgrade`
    Upgrade(upgrade::Arguments),
    /// Hand over on this very host; called by `upgrade`
    #[command(hide = true)]
    UpgradeHere(upgrade_here::Arguments),
    /// Measure on this very host; called by `bench`
    #[command(hide = true)]
    BenchHere(bench_here::Arguments),
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
                Command::Matrix(arguments) => matrix::run(&arguments).await.map(Ending::from),
                Command::Proof(arguments) => proof::run(&arguments).await,
                Command::Bench(arguments) => bench::run(&arguments).await.map(Ending::from),
                Command::RunHere(arguments) => {
                    run_here::run(&arguments).await.map(|()| Ending::Shown)
                }
                Command::Upgrade(arguments) => upgrade::run(&arguments).await.map(Ending::from),
                Command::UpgradeHere(arguments) => {
                    upgrade_here::run(&arguments).await.map(|()| Ending::Shown)
                }
                Command::BenchHere(arguments) => {
                    bench_here::run(&arguments).await.map(|()| Ending::Shown)
                }
                Command::Scale(arguments) => scale::run(&arguments).await.map(Ending::from),
                Command::Leaks(arguments) => leaks::run(&arguments).await.map(Ending::from),
            }
        })
    });
    match result {
        Ok(ending) => ExitCode::from(ending.exit_code()),
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
