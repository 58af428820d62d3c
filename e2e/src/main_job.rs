//! The main job: one real Linux guest, hundreds of chained cycles, a verdict.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use client::Client;
use cycles::{Interruption, LeftoverVsocks, MachineSubject, Report, Run, RunOptions, run_cycles};
use machine_api::{
    CreateMachine, Guest, Init, Machine, MachineConfig, MachineState, Restart, RestartPolicy,
    VsockOptions,
};

use crate::artifacts::GuestImage;
use crate::host::KvmHost;
use crate::output::{self, Progress};
use crate::{counter, peer, report_files};

/// Longest that a start, a suspend or a resume may take, the emulated host included.
pub const STEP_DEADLINE: Duration = Duration::from_secs(120);

/// What to run.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// How many cycles
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=i64::from(cycles::MAX_CYCLES)))]
    cycles: u32,
    /// Memory of the guest, in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=65_536))]
    memory_mib: u32,
    /// vCPUs of the guest
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    vcpus: u32,
    /// Folder for report.json, report.csv and report.html
    #[arg(long, value_name = "DIR", default_value = "target/e2e")]
    output: PathBuf,
    /// Measure another VMM on the same work, side by side: firecracker=PATH of its static binary
    #[arg(long, value_name = "KIND=PATH")]
    vmm: Option<peer::PeerBinary>,
    /// Which init the guest runs; the leaky one shows who lives with a leak and who does not
    #[arg(long, value_enum, default_value_t = GuestImage::Default)]
    guest: GuestImage,
    /// Connect the long-lived monitor before the status check, the unlucky order
    #[arg(long)]
    monitor_first: bool,
}

/// Runs the job; true if the verdict is flat.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let host = KvmHost::start(&arguments.output, &[arguments.guest]).await?;
    let wanted = Wanted {
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
    let started_at = humantime_now();
    let run = cycles_on(host.client(), &wanted, arguments.cycles, leftover).await;
    let description = host.describe().await?;
    let run = match run {
        Ok(run) => run,
        Err(error) => {
            return Err(error.context(format!("see the host's log: {}", host.log().display())));
        }
    };
    host.stop()?;
    let mut report = Report::of_run(description, started_at, run);
    let refused = report.refused_attempts();
    if arguments.guest == GuestImage::Default && refused > 0 {
        report.mark_not_flat(&format!(
            "the guest refused {refused} readiness attempts, which only leaked pairs explain"
        ));
    }
    // What the peer does must not cost what was measured before it.
    report_files::write(&arguments.output, "report", &report)?;
    let measured = match &arguments.vmm {
        Some(binary) => measure_peer(binary, arguments, &mut report),
        None => Ok(()),
    };
    publish(&arguments.output, "report", &report)?;
    measured?;
    Ok(report.flatness.flat)
}

/// Measures the peer, adds it to `report`, and writes a full report of its own.
fn measure_peer(
    binary: &peer::PeerBinary,
    arguments: &Arguments,
    report: &mut Report,
) -> anyhow::Result<()> {
    let work = peer::Work {
        cycles: arguments.cycles,
        memory_mib: arguments.memory_mib,
        vcpus: arguments.vcpus,
        guest: arguments.guest,
        monitor_first: arguments.monitor_first,
    };
    let started_at = humantime_now();
    let peer = peer::measure(binary, &arguments.output, &work)?;
    report.peers.push(peer.clone());
    let own = Report::of_peer(report.host.clone(), started_at, work.cycles, peer);
    for path in report_files::write(&arguments.output, "firecracker", &own)? {
        output::say(&format!("the peer's own report: {}", path.display()));
    }
    Ok(())
}

/// A machine for a run.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub name: String,
    pub image: GuestImage,
    pub memory_mib: u32,
    pub vcpus: u32,
    pub vsock: Option<VsockOptions>,
}

/// Makes the machine, puts it through its cycles, removes it.
pub async fn cycles_on(
    client: &Client,
    wanted: &Wanted,
    cycles: u32,
    leftover_vsocks: LeftoverVsocks,
) -> anyhow::Result<Run> {
    let machine = boot(client, wanted).await?;
    let id = machine.id.clone();
    let file = Some(counter::FILE.to_owned());
    let mut subject = MachineSubject::new(client.clone(), machine, file, STEP_DEADLINE);
    subject
        .wait_for_counter()
        .await
        .context("cannot watch the counter in the guest")?;
    let interruption = Interruption::by_ctrl_c(|| {
        output::say("interrupted: the report will hold the cycles so far");
    });
    let mut progress = Progress::new(&wanted.name, interruption);
    let options = RunOptions {
        cycles,
        leftover_vsocks,
    };
    let run = run_cycles(&mut subject, options, &mut progress).await;
    drop(progress);
    client
        .destroy(&id, true)
        .await
        .context("cannot remove the machine")?;
    Ok(run)
}

/// Creates a machine with the counter as its main process, and waits until it is started.
pub async fn boot(client: &Client, wanted: &Wanted) -> anyhow::Result<Machine> {
    let config = MachineConfig {
        image: wanted.image.name().to_owned(),
        guest: Some(Guest {
            cpus: wanted.vcpus,
            memory_mb: wanted.memory_mib,
            ..Guest::default()
        }),
        init: Some(Init {
            exec: counter::command(),
            ..Init::default()
        }),
        restart: Some(Restart {
            policy: RestartPolicy::No,
            max_retries: None,
        }),
        vsock: wanted.vsock.clone(),
        ..MachineConfig::default()
    };
    let request = CreateMachine {
        name: Some(wanted.name.clone()),
        config,
        ..CreateMachine::default()
    };
    let machine = client
        .create(&request)
        .await
        .context("cannot make the machine")?;
    let started = client
        .reach(&machine.id, MachineState::Started, STEP_DEADLINE)
        .await;
    started.context("cannot boot the machine")
}

/// Writes the report and prints what people want to know of it.
pub fn publish(folder: &Path, stem: &str, report: &Report) -> anyhow::Result<()> {
    let paths = report_files::write(folder, stem, report)?;
    for table in cycles::tables_of(report) {
        output::print(&table);
        output::print("");
    }
    if report.has_run() {
        output::print(&cycles::rules_in_words().join("\n"));
        let (verdict, reason) = (report.flatness.in_words(), &report.flatness.reason);
        output::print(&format!("verdict: {verdict}: {reason}"));
    }
    for path in paths {
        output::print(&format!("report: {}", path.display()));
    }
    Ok(())
}

/// Now, as RFC 3339 in UTC.
pub fn humantime_now() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
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
