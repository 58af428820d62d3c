//! `mctl bench resume`: chained suspend/resume cycles on a user's own machine, judged as the
//! end-to-end harness judges its own.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use cycles::{
    Cycle, FailedCheck, Host, Interruption, KvmKind, LeftoverVsocks, MIN_CYCLES, MachineSubject,
    Observer, Report, RunOptions, SubjectDescription, cycles_csv, report_page, run_cycles,
};
use machine_api::{HostInfo, MachineState};

use super::report::{summary, write};
use crate::error::CommandError;
use crate::machine_ref;
use crate::output::Progress;
use crate::session::Session;
use crate::span::milliseconds;

/// Measure a machine of your own
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl bench resume web --cycles 100 --assert-flat")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Resume(ResumeArgs),
}

/// Suspend and resume a started machine again and again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is 8 if a check of a cycle fails, or with --assert-flat if the latency is not flat.

Example:
  mctl bench resume web --cycles 100 --assert-flat --output report.json")]
struct ResumeArgs {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
    /// How many cycles
    #[arg(long, short, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=i64::from(cycles::MAX_CYCLES)))]
    cycles: u32,
    /// Fail unless resume latency stays flat
    #[arg(long)]
    assert_flat: bool,
    /// Go on when a socket is left over in the guest
    #[arg(long)]
    allow_leaks: bool,
    /// File in the guest with a number that a process there keeps counting up
    #[arg(long, value_name = "PATH")]
    counter_file: Option<String>,
    /// Longest time for one suspend or one resume
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = crate::span::parse_duration)]
    step_timeout: Duration,
    /// Write the report as JSON, and beside it as a page and CSV
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let Verb::Resume(args) = args.verb;
    if args.assert_flat && usize::try_from(args.cycles).is_ok_and(|cycles| cycles < MIN_CYCLES) {
        return Err(CommandError::Argument {
            argument: "--cycles",
            reason: format!("--assert-flat needs at least {MIN_CYCLES} for a verdict"),
        });
    }
    let machine = machine_ref::find(session, args.machine.as_deref()).await?;
    if machine.state != MachineState::Started {
        return Err(CommandError::NotStarted {
            machine: crate::transition::label(&machine),
            state: machine.state,
        });
    }
    let host = described(session.client.host().await?);
    let started_at = jiff::Timestamp::now().to_string();
    let mut subject = MachineSubject::new(
        session.client.clone(),
        machine,
        args.counter_file,
        args.step_timeout,
    );
    let options = RunOptions {
        cycles: args.cycles,
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
    let measured = run_cycles(&mut subject, options, &mut watching).await;
    drop(watching);
    let report = Report::of_run(host, started_at, measured);
    if let Some(path) = &args.output {
        let json = serde_json::to_string_pretty(&report).map_err(std::io::Error::from)?;
        write(path, &json)?;
        write(&path.with_extension("html"), &report_page(&report))?;
        write(&path.with_extension("csv"), &cycles_csv(&report.cycles))?;
    }
    summary(session, &report)?;
    if let Some(failed) = &report.failed_check {
        let what = session.output.harmless(&failed.message);
        return Err(CommandError::CycleFailed {
            cycle: failed.cycle,
            what,
        });
    }
    if args.assert_flat && !report.flatness.flat {
        return Err(CommandError::NotFlat);
    }
    Ok(())
}

fn described(info: HostInfo) -> Host {
    let kvm = match info.kvm.as_str() {
        "hardware" => KvmKind::Hardware,
        "virtual" => KvmKind::Virtual,
        "software" => KvmKind::Software,
        _ => KvmKind::Unknown,
    };
    let details = [
        ("cpu", info.cpu.into()),
        ("kernel", info.kernel.into()),
        ("cpus", info.cpus.into()),
        ("memory_mib", info.memory_mib.into()),
        ("kvm_detail", info.kvm_detail.into()),
    ];
    Host {
        kvm,
        details: details
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect::<BTreeMap<_, _>>(),
    }
}

struct Watching {
    progress: Progress,
    interruption: Interruption,
}

impl Observer for Watching {
    fn run_started(&mut self, _subject: &SubjectDescription, _cycles: u32) {}

    fn cycle_done(&mut self, cycle: &Cycle, _cycles: u32) -> ControlFlow<()> {
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
    fn no_more_cycles_are_taken_than_a_report_can_be_judged_with() {
        let parsed =
            |cycles: u32| CommandLine::try_parse_from(["resume", "--cycles", &cycles.to_string()]);
        let most = parsed(cycles::MAX_CYCLES).unwrap().arguments;
        assert_eq!(most.cycles, cycles::MAX_CYCLES);
        assert!(parsed(cycles::MAX_CYCLES + 1).is_err());
    }
}
