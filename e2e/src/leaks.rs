//! One run with programs that leak one of each kind in every cycle: each leak must show in what is
//! recorded, under its own name.
//!
//! `./just leaks` builds these programs and puts them, under the names of the released ones, into a
//! folder of their own with a copy of this one.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use cycles::{Cycle, LeftoverVsocks, Report};

use crate::artifacts::GuestImage;
use crate::host::KvmHost;
use crate::machine::{MachineSpec, run_on_new_machine};
use crate::{output, report_files};

const KIB: u64 = 1024;

/// What grows, and by how much at least in each cycle. What each program leaks is in its own
/// `leaks.rs`.
const LEAKS: &[(&str, u64)] = &[
    ("guest_init_descriptors", 1),
    ("guest_init_threads", 1),
    ("guest_init_resident_bytes", 64 * KIB),
    ("guest_init_anonymous_bytes", 64 * KIB),
    ("guest_init_epoll_entries", 1),
    ("guest_init_timers", 1),
    ("guest_tasks", 1),
    ("guest_vsocks_established", 1),
    ("guest_vsocks_listening", 1),
    ("vmm_descriptors", 1),
    ("vmm_threads", 1),
    ("vmm_anonymous_bytes", 64 * KIB),
    ("vmm_epoll_entries", 1),
    ("vmm_timers", 1),
    ("vmm_vsock_connections_established", 1),
    ("supervisor_descriptors", 1),
    ("supervisor_threads", 1),
    ("supervisor_resident_bytes", 64 * KIB),
    ("supervisor_anonymous_bytes", 64 * KIB),
    ("supervisor_epoll_entries", 1),
    ("supervisor_timers", 1),
    ("supervisor_tasks", 1),
    ("image_bytes", 64 * KIB),
    ("database_bytes", 64 * KIB),
    ("log_bytes", 64 * KIB),
    ("machine_folder_bytes", 64 * KIB),
    ("machine_folder_files", 1),
];

/// What to run.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// How many cycles
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..=1_000))]
    cycles: u32,
    /// Folder for report.json, report.csv and report.html
    #[arg(long, value_name = "DIR", default_value = "target/leaks-report")]
    output: PathBuf,
}

/// Runs the cycles; true if every leak shows.
///
/// # Errors
/// If the host or the machine cannot be run, or the report cannot be written.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let host = KvmHost::start(&arguments.output, &[GuestImage::Default]).await?;
    let spec = MachineSpec {
        name: "leaks".to_owned(),
        image: GuestImage::Default,
        memory_mib: 256,
        vcpus: 1,
        vsock: None,
    };
    let started_at = report_files::now();
    let leftover = LeftoverVsocks::Record;
    let run = run_on_new_machine(host.client(), &spec, arguments.cycles, leftover).await;
    let description = host.describe().await?;
    let run = run.with_context(|| format!("see the host's log: {}", host.log().display()))?;
    host.stop()?;
    let report = Report::of_run(description, started_at, run);
    for path in report_files::write(&arguments.output, "report", &report)? {
        output::say(&format!("report: {}", path.display()));
    }
    if let Some(failed) = &report.failed_check {
        output::say(&format!("the run ended early: {}", failed.message));
        return Ok(false);
    }
    let unseen = unseen(&report.cycles);
    for leak in &unseen {
        output::say(leak);
    }
    output::say(&format!(
        "{} of {} leaks show in {} cycles",
        LEAKS.len() - unseen.len(),
        LEAKS.len(),
        report.cycles.len()
    ));
    Ok(unseen.is_empty())
}

/// The leaks that do not show, each in a sentence.
fn unseen(cycles: &[Cycle]) -> Vec<String> {
    let (Some(first), Some(last)) = (cycles.first(), cycles.last()) else {
        return vec!["no cycle was recorded".to_owned()];
    };
    let spans = u64::from(last.cycle - first.cycle);
    LEAKS
        .iter()
        .filter_map(|(name, per_cycle)| {
            let (Some(first), Some(last)) = (first.resources.get(name), last.resources.get(name))
            else {
                return Some(format!("{name} is not recorded"));
            };
            // Sizes also fall a little by themselves.
            let expected = per_cycle * spans * 3 / 4;
            let shows = last >= first + expected;
            (!shows).then(|| format!("{name} went from {first} to {last}, not {expected} up"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use cycles::{Attempt, Phases};

    use super::*;

    fn cycle(number: u32, grown: impl Fn(&str, u64) -> u64) -> Cycle {
        let resources = LEAKS
            .iter()
            .map(|(name, per_cycle)| (*name, grown(name, u64::from(number) * per_cycle)));
        Cycle {
            cycle: number,
            suspend_ms: 1.0,
            resume_ms: 1.0,
            suspend_phases_ms: Phases::with_remainder([], 1.0),
            resume_phases_ms: Phases::with_remainder([], 1.0),
            readiness: Vec::<Attempt>::new(),
            guest_open_vsocks: None,
            image_bytes_written: None,
            resources: resources.collect(),
        }
    }

    #[test]
    fn a_leak_that_is_not_recorded_or_does_not_grow_is_named() {
        let all = [1, 30].map(|number| cycle(number, |_, value| value));
        assert_eq!(unseen(&all), Vec::<String>::new());
        let still = |name: &str, value| if name == "vmm_timers" { 7 } else { value };
        let unseen_leaks = unseen(&[1, 30].map(|number| cycle(number, still)));
        assert_eq!(unseen_leaks, ["vmm_timers went from 7 to 7, not 21 up"]);
        let mut bare = cycle(30, |_, value| value);
        bare.resources = cycles::Resources::default();
        assert_eq!(unseen(&[bare.clone(), bare]).len(), LEAKS.len());
        assert_eq!(unseen(&[]).len(), 1);
    }
}
