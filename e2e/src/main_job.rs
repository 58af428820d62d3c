//! The main job: one real Linux guest, hundreds of chained cycles, a verdict. An undecided run goes
//! on with more of them.

use std::path::PathBuf;

use clap::Args;
use cycles::{Clock, LeftoverVsocks, Report, RunOptions, Setting};
use machine_api::VsockOptions;

use crate::artifacts::GuestImage;
use crate::ending::Ending;
use crate::host::KvmHost;
use crate::machine::{MachineSpec, run_on_new_machine};
use crate::{output, peer, report_files};

/// What to run.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Exit codes: 0 flat, 1 rising or a failed check, 2 the command line is not valid, 3 undecided after
as many cycles as were allowed; the verdict then says how many the noise asks for.")]
pub struct Arguments {
    /// How many cycles
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=i64::from(cycles::MAX_CYCLES)))]
    cycles: u32,
    /// To how many cycles the run goes on while it is undecided
    #[arg(long, value_name = "CYCLES", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=i64::from(cycles::MAX_CYCLES)))]
    most_cycles: u32,
    /// Memory of the guest, in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=65_536))]
    memory_mib: u32,
    /// vCPUs of the guest
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    vcpus: u32,
    /// Folder for report.json, report.csv and report.html
    #[arg(long, value_name = "DIR", default_value = "target/e2e")]
    output: PathBuf,
    /// Run the same cycles in another VMM, too: firecracker=PATH of its static binary
    #[arg(long, value_name = "KIND=PATH")]
    vmm: Option<peer::PeerBinary>,
    /// Which init the guest runs; the leaky one leaves one socket open per resume
    #[arg(long, value_enum, default_value_t = GuestImage::Default)]
    guest: GuestImage,
    /// Connect the long-lived monitor before the status check: the order in which leaks cost most
    #[arg(long)]
    monitor_first: bool,
}

/// Runs the job.
///
/// # Errors
/// If the host, the machine or the peer cannot be run, or the report cannot be written.
pub async fn run(arguments: &Arguments) -> anyhow::Result<Ending> {
    let host = KvmHost::start(&arguments.output, &[arguments.guest]).await?;
    let spec = MachineSpec {
        name: "e2e".to_owned(),
        image: arguments.guest,
        memory_mib: arguments.memory_mib,
        vcpus: arguments.vcpus,
        vsock: arguments.monitor_first.then(|| VsockOptions {
            monitor_first: Some(true),
            ..VsockOptions::default()
        }),
    };
    let leftover = match arguments.guest {
        GuestImage::Default => LeftoverVsocks::Fail,
        GuestImage::Leaky => LeftoverVsocks::Record,
    };
    let options = RunOptions {
        cycles: arguments.cycles,
        most_cycles: arguments.most_cycles,
        leftover_vsocks: leftover,
    };
    let started_at = report_files::now();
    let run = run_on_new_machine(host.client(), &spec, options).await;
    let description = host.describe().await?;
    let run = match run {
        Ok(run) => run,
        Err(error) => {
            return Err(error.context(format!("see the host's log: {}", host.log().display())));
        }
    };
    host.stop()?;
    let mut report = Report::of_run(
        Setting {
            host: description,
            clock: Clock::Real,
            started_at,
        },
        run,
    );
    if arguments.guest == GuestImage::Default {
        report.require_first_attempts();
    }
    // Written before the peer runs, so that a failure of the peer does not lose it.
    report_files::write(&arguments.output, "report", &report)?;
    let peer_measured = match &arguments.vmm {
        Some(binary) => measure_peer(binary, arguments, &mut report),
        None => Ok(()),
    };
    report_files::publish(&arguments.output, "report", &report)?;
    peer_measured?;
    Ok(Ending::of(&report))
}

/// Measures the peer, adds it to `report`, and writes a full report of its own.
fn measure_peer(
    binary: &peer::PeerBinary,
    arguments: &Arguments,
    report: &mut Report,
) -> anyhow::Result<()> {
    let work = peer::Work {
        cycles: report.config.cycles,
        memory_mib: arguments.memory_mib,
        vcpus: arguments.vcpus,
        guest: arguments.guest,
        monitor_first: arguments.monitor_first,
    };
    let started_at = report_files::now();
    let peer = peer::measure(binary, &arguments.output, &work)?;
    report.peers.push(peer.clone());
    let setting = Setting {
        host: report.host.clone(),
        clock: report.clock,
        started_at,
    };
    let own = Report::of_peer(setting, work.cycles, peer);
    for path in report_files::write(&arguments.output, "firecracker", &own)? {
        output::say(&format!("the peer's own report: {}", path.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn no_more_cycles_are_taken_than_a_report_can_be_judged_with() {
        let parsed =
            |cycles: u32| CommandLine::try_parse_from(["cycles", "--cycles", &cycles.to_string()]);
        let most = parsed(cycles::MAX_CYCLES).unwrap().arguments;
        assert_eq!(most.cycles, cycles::MAX_CYCLES);
        assert!(parsed(cycles::MAX_CYCLES + 1).is_err());
    }
}
