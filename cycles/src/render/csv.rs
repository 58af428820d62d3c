//! The cycles of a report as CSV: the same records as in the JSON, one line per cycle.
//!
//! Columns: the scalar figures, then one for each suspend phase and each resume phase, in order.
//! The names of durations say their unit: `resume_ms`, or `resume_virtual_ms` in virtual time.
//! Fields are quoted where RFC 4180 requires it.

use std::borrow::Cow;
use std::fmt::Write;

use crate::record::{Clock, Cycle, Phases, Report, names_in_order};

/// The contents of `report.csv`.
pub fn cycles_csv(report: &Report) -> String {
    csv_of(&report.cycles, report.clock)
}

fn csv_of(cycles: &[Cycle], clock: Clock) -> String {
    let unit = clock.unit_in_names();
    let suspend_names = names_in_order(cycles.iter().map(|cycle| &cycle.suspend_phases_ms));
    let resume_names = names_in_order(cycles.iter().map(|cycle| &cycle.resume_phases_ms));

    let mut csv = format!(
        "cycle,suspend_{unit},resume_{unit},attempts,attempt_outcomes,attempt_local_ports,\
         guest_open_vsocks,image_bytes_written",
    );
    for (prefix, names) in [("suspend", &suspend_names), ("resume", &resume_names)] {
        for name in names {
            csv.push(',');
            csv.push_str(&field(&format!("{prefix}_{name}_{unit}")));
        }
    }
    csv.push_str("\r\n");
    for cycle in cycles {
        append_cycle(&mut csv, cycle, &suspend_names, &resume_names);
    }
    csv
}

fn append_cycle(csv: &mut String, cycle: &Cycle, suspend: &[&str], resume: &[&str]) {
    let outcomes: Vec<&str> = cycle.readiness.iter().map(|a| a.outcome.name()).collect();
    let ports: Vec<String> = cycle
        .readiness
        .iter()
        .map(|a| optional(a.local_port))
        .collect();
    // Writing to a string cannot fail.
    let _ = write!(
        csv,
        "{},{:.3},{:.3},{},{},{},{},{}",
        cycle.cycle,
        cycle.suspend_ms,
        cycle.resume_ms,
        cycle.attempts(),
        outcomes.join(" "),
        ports.join(" "),
        optional(cycle.guest_open_vsocks),
        optional(cycle.image_bytes_written),
    );
    append_phases(csv, &cycle.suspend_phases_ms, suspend);
    append_phases(csv, &cycle.resume_phases_ms, resume);
    csv.push_str("\r\n");
}

fn append_phases(csv: &mut String, phases: &Phases, names: &[&str]) {
    for name in names {
        csv.push(',');
        if let Some(ms) = phases.ms(name) {
            let _ = write!(csv, "{ms:.3}");
        }
    }
}

fn optional<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn field(text: &str) -> Cow<'_, str> {
    if text.contains([',', '"', '\r', '\n']) {
        return Cow::Owned(format!("\"{}\"", text.replace('"', "\"\"")));
    }
    Cow::Borrowed(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Attempt, AttemptOutcome, Resources};

    fn cycle(phase: &str) -> Cycle {
        let attempt = |port, outcome| Attempt {
            local_port: Some(port),
            outcome,
            ms: 1.0,
        };
        Cycle {
            cycle: 1,
            suspend_ms: 2.0,
            resume_ms: 5.5,
            suspend_phases_ms: Phases::with_remainder([("pause".to_owned(), 2.0)], 2.0),
            resume_phases_ms: Phases::with_remainder([(phase.to_owned(), 5.0)], 5.5),
            readiness: vec![
                attempt(7, AttemptOutcome::Reset),
                attempt(8, AttemptOutcome::Ok),
            ],
            guest_open_vsocks: Some(3),
            image_bytes_written: None,
            resources: Resources::default(),
        }
    }

    #[test]
    fn a_cycle_becomes_one_line_with_all_its_phases() {
        let csv = csv_of(&[cycle("spawn")], Clock::Real);
        let lines: Vec<&str> = csv.lines().collect();
        assert!(lines[0].ends_with(
            ",suspend_pause_ms,suspend_unattributed_ms,resume_spawn_ms,resume_unattributed_ms"
        ));
        assert_eq!(
            lines[1],
            "1,2.000,5.500,2,reset ok,7 8,3,,2.000,0.000,5.000,0.500"
        );
    }

    #[test]
    fn columns_of_virtual_time_say_so() {
        let csv = csv_of(&[cycle("spawn")], Clock::Virtual);
        assert!(
            csv.starts_with("cycle,suspend_virtual_ms,resume_virtual_ms,"),
            "{csv}"
        );
        assert!(csv.contains(",resume_spawn_virtual_ms,"), "{csv}");
    }

    #[test]
    fn a_hostile_phase_name_stays_one_field() {
        let csv = csv_of(&[cycle("a,\"b\"\n")], Clock::Real);
        assert!(csv.contains(",\"resume_a,\"\"b\"\"\n_ms\","), "{csv}");
    }
}
