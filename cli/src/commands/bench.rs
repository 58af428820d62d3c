//! `mctl bench resume`: chained suspend/resume cycles on a user's machine, with the verdict of the
//! end-to-end harness. A resume ends when the supervisor says so, or when a probe gets an answer.

mod probe;
mod probed_machine;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use client::ErrorKind;
use cycles::{
    Clock, Cycle, FailedCheck, Host, Interruption, KvmKind, LeftoverVsocks, MIN_CYCLES,
    MachineSubject, Observer, Outcome, Report, Run, RunOptions, Setting, SubjectDescription,
    cycles_csv, report_page, run_cycles,
};
use machine_api::{Machine, MachineState};
use probe::{Greeting, Probe};
use probed_machine::ProbedMachine;

use crate::arguments::MachineArg;
use crate::cycle_report::{print, write_file};
use crate::error::CommandError;
use crate::output::Progress;
use crate::parse;
use crate::session::Session;
use crate::units::milliseconds;
use crate::wording::label;

/// Measure suspends and resumes of a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl bench resume web --assert-flat")]
pub(crate) struct Args {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    Resume(ResumeArgs),
}

/// Suspend and resume a started machine repeatedly, and judge whether latency stays flat
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is 8 if a check of a cycle fails; with --assert-flat also if the verdict is rising,
and 9 if it is undecided. Latency must rise by less than 5 % of its median per 300 cycles. A shorter
run may show all of that, so it excludes less; the verdict says how much.

A resume ends when the supervisor counts the machine as started. With --probe it ends when something
that users care for gives its first answer, measured from here; any platform with the Machines API
will do. A TCP probe needs a byte from the other side, an HTTP probe a status below 400, and a command
exit code 0.

Examples:
  mctl bench resume web --cycles 300 --most-cycles 1000 --assert-flat --output report.json
  mctl bench resume web --probe http=http://localhost:8080/health
  mctl bench resume redis --probe tcp=localhost:6379 --probe-send 'PING\\r\\n'
  mctl bench resume db --probe 'exec=pg_isready --quiet'")]
struct ResumeArgs {
    #[command(flatten)]
    machine: MachineArg,
    /// Number of cycles
    #[arg(long, short, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=i64::from(cycles::MAX_CYCLES)))]
    cycles: u32,
    /// To how many cycles to go on while the verdict is undecided; not at all by default
    #[arg(long, value_name = "CYCLES", value_parser = clap::value_parser!(u32).range(1..=i64::from(cycles::MAX_CYCLES)))]
    most_cycles: Option<u32>,
    /// Fail unless the verdict is flat
    #[arg(long)]
    assert_flat: bool,
    /// Continue if a vsock socket stays open in the guest
    #[arg(long)]
    allow_leaks: bool,
    /// File in the guest with a number that a process in the guest keeps increasing
    #[arg(long, value_name = "PATH")]
    counter_file: Option<String>,
    /// What must answer before the machine counts as resumed: tcp=HOST:PORT, http=URL or
    /// exec=COMMAND
    #[arg(long, value_name = "PROBE", conflicts_with_all = ["counter_file", "allow_leaks"])]
    probe: Option<Probe>,
    /// What a TCP probe says first; \r, \n, \t, \0 and \\ stand for one byte each
    #[arg(long, value_name = "TEXT", requires = "probe")]
    probe_send: Option<Greeting>,
    /// Time limit for one suspend or one resume
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse::duration)]
    step_timeout: Duration,
    /// JSON file to write the report to; an HTML page and a CSV file are written beside it
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let Benchmark::Resume(args) = args.benchmark;
    if args.assert_flat && usize::try_from(args.cycles).is_ok_and(|cycles| cycles < MIN_CYCLES) {
        return Err(CommandError::Argument {
            argument: "--cycles",
            reason: format!("--assert-flat needs at least {MIN_CYCLES} for a verdict"),
        });
    }
    let machine = args.machine.find(session).await?;
    if machine.state != MachineState::Started {
        return Err(CommandError::NotStarted {
            machine: label(&machine),
            state: machine.state,
        });
    }
    let (host, clock) = host_and_clock(session).await?;
    let started_at = jiff::Timestamp::now().to_string();
    let options = RunOptions {
        cycles: args.cycles,
        most_cycles: args.most_cycles.unwrap_or(args.cycles),
        leftover_vsocks: if args.allow_leaks {
            LeftoverVsocks::Record
        } else {
            LeftoverVsocks::Fail
        },
    };
    let mut watching = Watching {
        progress: session.output.progress(u64::from(args.cycles), "cycles"),
        interruption: Interruption::by_ctrl_c(|| {}),
    };
    let measured = measure(session, &args, machine, options, &mut watching).await;
    drop(watching);
    let setting = Setting {
        host,
        clock,
        started_at,
    };
    let report = Report::of_run(setting, measured);
    if let Some(path) = &args.output {
        let json = serde_json::to_string_pretty(&report).map_err(std::io::Error::from)?;
        write_file(path, &json)?;
        write_file(&path.with_extension("html"), &report_page(&report))?;
        write_file(&path.with_extension("csv"), &cycles_csv(&report))?;
    }
    print(session, &report)?;
    if let Some(failed) = &report.failed_check {
        let message = session.output.harmless(&failed.message);
        return Err(CommandError::CycleFailed {
            cycle: failed.cycle,
            message,
        });
    }
    match report.flatness.outcome {
        Outcome::Rising if args.assert_flat => Err(CommandError::NotFlat),
        Outcome::Undecided if args.assert_flat => Err(CommandError::FlatnessUndecided),
        Outcome::Flat | Outcome::Rising | Outcome::Undecided => Ok(()),
    }
}

/// Puts the machine through its cycles.
async fn measure(
    session: &Session,
    args: &ResumeArgs,
    machine: Machine,
    options: RunOptions,
    watching: &mut Watching,
) -> Run {
    let client = session.client.clone();
    let Some(probe) = args.probe.clone() else {
        let file = args.counter_file.clone();
        let mut subject = MachineSubject::new(client, machine, file, args.step_timeout);
        return run_cycles(&mut subject, options, watching).await;
    };
    let Greeting(send) = args.probe_send.clone().unwrap_or_default();
    let probe = probe.with_trust(session.settings.trust());
    let mut subject = ProbedMachine::new(client, machine, probe, send, args.step_timeout);
    run_cycles(&mut subject, options, watching).await
}

/// The host, and the clock by which it measures. Another platform does not describe its hosts.
async fn host_and_clock(session: &Session) -> Result<(Host, Clock), CommandError> {
    match session.client.host().await {
        Ok(info) => Ok((Host::from(info.clone()), Clock::from(&info))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let host = Host {
                kvm: KvmKind::Unknown,
                details: BTreeMap::new(),
            };
            Ok((host, Clock::Real))
        }
        Err(error) => Err(error.into()),
    }
}

struct Watching {
    progress: Progress,
    interruption: Interruption,
}

impl Observer for Watching {
    fn run_started(&mut self, _subject: &SubjectDescription, _cycles: u32) {}

    fn cycle_done(&mut self, cycle: &Cycle, cycles: u32) -> ControlFlow<()> {
        self.progress.lengthen_to(u64::from(cycles));
        let resume = milliseconds(cycle.resume_ms);
        self.progress
            .advance_to(u64::from(cycle.cycle), &format!("resume {resume}"));
        if self.interruption.is_requested() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn check_failed(&mut self, _failed: &FailedCheck) {}
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        arguments: ResumeArgs,
    }

    #[test]
    fn the_number_of_cycles_is_bounded() {
        let parsed =
            |cycles: u32| CommandLine::try_parse_from(["resume", "--cycles", &cycles.to_string()]);
        let most = parsed(cycles::MAX_CYCLES).unwrap().arguments;
        assert_eq!(most.cycles, cycles::MAX_CYCLES);
        assert!(parsed(cycles::MAX_CYCLES + 1).is_err());
    }
}
