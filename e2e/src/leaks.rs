//! One run with programs that leak one of each kind in every cycle: each leak must be found by the
//! verdict, under its own name.
//!
//! `./just leaks` builds these programs and puts them, under the names of the released ones, into a
//! folder of their own with a copy of this one.

use std::path::PathBuf;

use clap::Args;
use cycles::{Outcome, Report, Rule};

use crate::artifacts::GuestImage;
use crate::kvm_place::KvmPlace;
use crate::output::Bars;
use crate::work::{Vmm, Work};
use crate::{measure, output, report_files};

/// What must be found to grow. What each program leaks is in its own `leaks.rs`.
const LEAKS: &[&str] = &[
    "guest_init_descriptors",
    "guest_init_threads",
    "guest_init_resident_bytes",
    "guest_init_anonymous_bytes",
    "guest_init_epoll_entries",
    "guest_init_timers",
    "guest_tasks",
    "guest_vsocks_established",
    "guest_vsocks_listening",
    "vmm_descriptors",
    "vmm_threads",
    "vmm_anonymous_bytes",
    "vmm_epoll_entries",
    "vmm_timers",
    "vmm_vsock_connections_established",
    "supervisor_descriptors",
    "supervisor_threads",
    "supervisor_resident_bytes",
    "supervisor_anonymous_bytes",
    "supervisor_epoll_entries",
    "supervisor_timers",
    "supervisor_tasks",
    "image_bytes",
    "database_bytes",
    "log_bytes",
    "machine_folder_bytes",
    "machine_folder_files",
];

/// What to run.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// How many cycles
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(2..=1_000))]
    cycles: u32,
    /// Folder for report.json, report.csv and report.html
    #[arg(long, value_name = "DIR", default_value = "target/leaks-report")]
    output: PathBuf,
}

/// Runs the cycles; true if the verdict finds every leak.
///
/// # Errors
/// If the host or the machine cannot be run, or the report cannot be written.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let place = KvmPlace::of_this_machine();
    measure::announce(place);
    let work = Work {
        name: "leaks".to_owned(),
        vmm: Vmm::Mctl,
        cycles: arguments.cycles,
        most_cycles: arguments.cycles,
        memory_mib: 256,
        vcpus: 1,
        guest: GuestImage::Default,
        expects_leaks: true,
        port_policy: None,
        eviction: None,
        monitor_first: false,
    };
    let started_at = report_files::now();
    let collected = measure::run(place, &arguments.output, work, &Bars::new()).await?;
    let setting = measure::setting(place, collected.host, &started_at);
    let report = Report::of_run(setting, collected.run);
    for path in report_files::write(&arguments.output, "report", &report)? {
        output::say(&format!("report: {}", path.display()));
    }
    if let Some(failed) = &report.failed_check {
        output::say(&format!("the run ended early: {}", failed.message));
        return Ok(false);
    }
    let missed = missed(&report.flatness.rules);
    for name in &missed {
        output::say(&format!("the verdict does not find that {name} rises"));
    }
    output::print(&format!(
        "{} of {} leaks are found in {} cycles",
        LEAKS.len() - missed.len(),
        LEAKS.len(),
        report.cycles.len()
    ));
    Ok(missed.is_empty())
}

/// The leaks that no rule finds.
fn missed(rules: &[Rule]) -> Vec<&'static str> {
    let is_found = |name: &&str| {
        let finds = |rule: &Rule| rule.series == *name && rule.outcome == Outcome::Rising;
        rules.iter().any(finds)
    };
    LEAKS
        .iter()
        .copied()
        .filter(|name| !is_found(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use cycles::{
        Clock, Cycle, Host, KvmKind, Phases, Resources, Run, RunEnd, Setting, SubjectDescription,
    };

    use super::*;

    /// The report on a run in which each value is `value` of its name and cycle.
    fn report(value: impl Fn(&str, u64) -> u64) -> Report {
        let cycle = |number: u32| Cycle {
            cycle: number,
            suspend_ms: 1.0,
            resume_ms: 1.0,
            suspend_phases_ms: Phases::with_remainder([], 1.0),
            resume_phases_ms: Phases::with_remainder([], 1.0),
            readiness: Vec::new(),
            guest_open_vsocks: None,
            image_bytes_written: None,
            resources: LEAKS
                .iter()
                .map(|name| (*name, value(name, u64::from(number))))
                .collect::<Resources>(),
        };
        let run = Run {
            subject: SubjectDescription::default(),
            cycles_wanted: 120,
            looks: Vec::new(),
            cycles: (1..=120).map(cycle).collect(),
            end: RunEnd::Complete,
            vsocks_before: None,
        };
        let setting = Setting {
            host: Host {
                kvm: KvmKind::Unknown,
                details: std::collections::BTreeMap::new(),
            },
            clock: Clock::Virtual,
            started_at: String::new(),
        };
        Report::of_run(setting, run)
    }

    fn leaked(name: &str, cycle: u64) -> u64 {
        if name.ends_with("_bytes") {
            cycle << 16
        } else {
            cycle
        }
    }

    #[test]
    fn a_leak_that_does_not_grow_is_missed() {
        assert_eq!(missed(&report(leaked).flatness.rules), Vec::<&str>::new());
        let but_timers = |name: &str, cycle| {
            if name == "vmm_timers" {
                7
            } else {
                leaked(name, cycle)
            }
        };
        assert_eq!(missed(&report(but_timers).flatness.rules), ["vmm_timers"]);
    }
}
