//! The main job: one real Linux guest, hundreds of chained cycles, a verdict. An undecided run goes
//! on with more of them.

use std::path::PathBuf;

use clap::Args;
use cycles::{Peer, Report, Run, Setting};

use crate::artifacts::GuestImage;
use crate::ending::Ending;
use crate::work::{Vmm, Work};
use crate::{measure, output, report_files};

/// The name of the report's files, without ending.
const STEM: &str = "report";

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
    vmm: Option<Vmm>,
    /// Which init the guest runs; the leaky one leaves one socket open per resume
    #[arg(long, value_enum, default_value_t = GuestImage::Default)]
    guest: GuestImage,
    /// Connect the long-lived monitor before the status check: the order in which leaks cost most
    #[arg(long)]
    monitor_first: bool,
}

/// Runs the job, and the same in a peer if one is given.
///
/// # Errors
/// If the host, the machine or the peer cannot be run, or the report cannot be written.
pub async fn run(arguments: &Arguments) -> anyhow::Result<Ending> {
    measure::announce();
    let started_at = report_files::now();
    let mut report = None;
    let mut peer = None;
    let result = measure::run_all(&arguments.output, arguments.works(), |number, result| {
        if number == 0 {
            let collected = result?;
            let setting = measure::setting(collected.host, &started_at);
            let own = judged(arguments.guest, setting, collected.run);
            // Whatever becomes of the peer, this is not lost.
            report_files::write(&arguments.output, STEM, &own)?;
            report = Some(own);
        } else {
            peer = Some(result?.run);
        }
        Ok(())
    })
    .await;
    let Some(mut report) = report else {
        result?;
        anyhow::bail!("the run has no result");
    };
    if let Some(run) = peer {
        add_peer(arguments, &mut report, run)?;
    }
    report_files::publish(&arguments.output, STEM, &report)?;
    result?;
    Ok(Ending::of(&report))
}

/// The report on our own machine.
fn judged(guest: GuestImage, setting: Setting, run: Run) -> Report {
    let mut report = Report::of_run(setting, run);
    if guest == GuestImage::Default {
        report.require_first_attempts();
    }
    report
}

/// Adds the peer to `report`, and writes a full report of its own.
fn add_peer(arguments: &Arguments, report: &mut Report, run: Run) -> anyhow::Result<()> {
    let cycles = run.cycles_wanted;
    let peer = Peer::of_run(run, report.clock);
    report.peers.push(peer.clone());
    let setting = Setting {
        host: report.host.clone(),
        clock: report.clock,
        started_at: report.config.started_at.clone(),
    };
    let own = Report::of_peer(setting, cycles, peer);
    let stem = arguments.vmm.as_ref().map_or("peer", Vmm::name);
    for path in report_files::write(&arguments.output, stem, &own)? {
        output::say(&format!("the peer's own report: {}", path.display()));
    }
    Ok(())
}

impl Arguments {
    /// Our own machine's work, then that of the peer.
    fn works(&self) -> Vec<Work> {
        let own = Work {
            name: Vmm::Mctl.name().to_owned(),
            vmm: Vmm::Mctl,
            cycles: self.cycles,
            most_cycles: self.most_cycles,
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            guest: self.guest,
            expects_leaks: false,
            port_policy: None,
            eviction: None,
            monitor_first: self.monitor_first,
        };
        let peer = self.vmm.as_ref().map(|vmm| Work {
            name: vmm.name().to_owned(),
            vmm: vmm.clone(),
            ..own.clone()
        });
        std::iter::once(own).chain(peer).collect()
    }
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
