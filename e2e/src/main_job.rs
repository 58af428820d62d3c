//! The main job: one real Linux guest, hundreds of chained cycles, a verdict. An undecided run goes
//! on with more of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use cycles::{Report, Run, Setting};

use crate::artifacts::GuestImage;
use crate::ending::Ending;
use crate::kvm_place::KvmArguments;
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
    #[command(flatten)]
    kvm: KvmArguments,
    /// Run the same cycles in another VMM, too: firecracker=PATH or cloud-hypervisor=PATH of its static
    /// binary; may be given once for each
    #[arg(long, value_name = "KIND=PATH")]
    vmm: Vec<Vmm>,
    /// Which init the guest runs; the leaky one leaves one socket open per resume
    #[arg(long, value_enum, default_value_t = GuestImage::Default)]
    guest: GuestImage,
    /// Judge the checks of each cycle only, as for a run that is too short for a verdict
    #[arg(long, conflicts_with = "vmm")]
    checks_only: bool,
    /// Connect the long-lived monitor before the status check: the order in which leaks cost most
    #[arg(long)]
    monitor_first: bool,
}

/// Runs the job, and the same in each peer that is given.
///
/// # Errors
/// If the host, the machine or a peer cannot be run, or the report cannot be written.
pub async fn run(arguments: &Arguments) -> anyhow::Result<Ending> {
    let place = arguments.kvm.place()?;
    measure::announce(place);
    let started_at = report_files::now();
    let mut report = None;
    let works = arguments.works()?;
    let names: Vec<String> = works.iter().map(|work| work.name.clone()).collect();
    let mut peers = BTreeMap::new();
    let result = measure::run_all(place, &arguments.output, works, |number, result| {
        let collected = result?;
        let setting = measure::setting(place, collected.host, &started_at);
        if number == 0 {
            let own = judged(arguments.guest, setting, collected.run);
            // Whatever becomes of the peers, this is not lost.
            report_files::write(&arguments.output, STEM, &own)?;
            report = Some(own);
        } else {
            let own = Report::of_run(setting, collected.run);
            for path in report_files::write(&arguments.output, &names[number], &own)? {
                let name = &names[number];
                output::say(&format!("the report of {name}: {}", path.display()));
            }
            peers.insert(number, own.into_peer());
        }
        Ok(())
    })
    .await;
    let Some(mut report) = report else {
        result?;
        anyhow::bail!("the run has no result");
    };
    report.peers.extend(peers.into_values());
    report_files::publish(&arguments.output, STEM, &report)?;
    result?;
    if arguments.checks_only {
        let passed = report.failed_check.is_none();
        if passed {
            let cycles = report.cycles.len();
            output::say(&format!(
                "every check passed in each of {cycles} cycles; latency is not judged"
            ));
        }
        return Ok(Ending::from(passed));
    }
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

impl Arguments {
    /// Our own machine's work, then that of each peer.
    fn works(&self) -> anyhow::Result<Vec<Work>> {
        let own = Work {
            name: Vmm::Mctl.name().to_owned(),
            vmm: Vmm::Mctl,
            cycles: self.cycles,
            most_cycles: if self.checks_only {
                self.cycles
            } else {
                self.most_cycles
            },
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            guest: self.guest,
            expects_leaks: false,
            port_policy: None,
            eviction: None,
            monitor_first: self.monitor_first,
        };
        let mut works = vec![own.clone()];
        for vmm in &self.vmm {
            let name = vmm.name().to_owned();
            // Logs and reports are named by it.
            ensure!(
                works.iter().all(|work| work.name != name),
                "--vmm {name}=… is given twice"
            );
            works.push(Work {
                name,
                vmm: vmm.clone(),
                ..own.clone()
            });
        }
        Ok(works)
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

    #[test]
    fn each_peer_has_a_run_and_reports_of_its_own() {
        let parsed = |vmms: &[&str]| {
            let words = vmms.iter().flat_map(|vmm| ["--vmm", vmm]);
            CommandLine::try_parse_from(std::iter::once("cycles").chain(words))
                .unwrap()
                .arguments
        };
        let both = parsed(&["firecracker=/bin/true", "cloud-hypervisor=/bin/true"]);
        let works = both.works().unwrap();
        let names: Vec<&str> = works.iter().map(|work| work.name.as_str()).collect();
        assert_eq!(names, ["mctl", "firecracker", "cloud-hypervisor"]);
        let twice = parsed(&["firecracker=/bin/true", "firecracker=/bin/false"]);
        let text = twice.works().unwrap_err().to_string();
        assert!(text.contains("firecracker=… is given twice"), "{text}");
    }
}
