//! Plain text tables for terminals: phases, readiness attempts, the matrix, peers, scale.
//!
//! Nothing is coloured and nothing depends on colour. Control characters of a hostile report are
//! replaced, so that a table cannot move the cursor.

use super::figures::{
    attempts_in_words, dash, optional_ms, optional_slope, peer_rows, phase_sections, rule_rows,
    scale_header, scale_row, visible,
};
use crate::record::{
    AttemptOutcome, Cell, Clock, Cycle, Flatness, Matrix, Report, ScaleRun, on_or_off,
};
use crate::statistics::Quantiles;

/// Everything that a report holds except the reason of its verdict: one text per table, the run
/// first.
pub fn tables_of(report: &Report) -> Vec<String> {
    let mut tables = Vec::new();
    if report.has_run() {
        tables.push(phases_table(&report.cycles, report.clock));
        tables.push(readiness_line(&report.cycles));
        if !report.flatness.rules.is_empty() {
            tables.push(rules_table(&report.flatness));
        }
    }
    if !report.peers.is_empty() {
        tables.push(peers_table(report));
    }
    if let Some(matrix) = &report.matrix {
        tables.push(matrix_table(matrix, report.clock));
        tables.push(format!("matrix: {}", matrix.in_words()));
    }
    if !report.scale.is_empty() {
        tables.push(scale_table(&report.scale, report.clock));
    }
    tables
}

/// p50, p90, p99 and max of suspend and resume and of each of their phases.
fn phases_table(cycles: &[Cycle], clock: Clock) -> String {
    let mut table = Table::with_header(&[clock.unit(), "p50", "p90", "p99", "max"]);
    for section in phase_sections(cycles) {
        table.quantiles_row(section.title, section.total);
        for (name, figures) in section.phases {
            table.quantiles_row(&format!("  {}", visible(&name)), figures);
        }
    }
    table.to_text()
}

/// All readiness attempts of a run in one line.
fn readiness_line(cycles: &[Cycle]) -> String {
    let attempts: u64 = cycles.iter().map(|cycle| u64::from(cycle.attempts())).sum();
    let most = cycles.iter().map(Cycle::attempts).max().unwrap_or(0);
    if most <= 1 {
        return format!("readiness: one attempt in each of {} cycles", cycles.len());
    }
    let failed = cycles
        .iter()
        .flat_map(|cycle| &cycle.readiness)
        .filter(|attempt| attempt.outcome != AttemptOutcome::Ok)
        .count();
    format!(
        "readiness: {attempts} attempts in {} cycles, at most {most} in one, {failed} failed",
        cycles.len()
    )
}

/// One line per rule, with its interval and its bound.
fn rules_table(flatness: &Flatness) -> String {
    let header = ["growth", "found", "at least", "at most", "bound", "verdict"];
    let mut table = Table::with_header(&header);
    for row in rule_rows(flatness) {
        table.row(row.to_vec());
    }
    table.to_text()
}

/// One line per cell.
fn matrix_table(matrix: &Matrix, clock: Clock) -> String {
    let slope = format!("slope {}/cycle", clock.unit());
    let mut table = Table::with_header(&[
        "guest",
        "ports",
        "eviction",
        "first",
        "p50 first tenth",
        "p50 last tenth",
        &slope,
        "95 % interval",
        "attempts",
        "sockets leaked",
        "verdict",
        "expected",
    ]);
    for cell in &matrix.cells {
        table.row(matrix_row(cell));
    }
    table.to_text()
}

fn matrix_row(cell: &Cell) -> Vec<String> {
    let expected = cell.expected.name();
    let expected = match cell.mismatch() {
        Some(mismatch) => format!("{expected}: NO, {mismatch}"),
        None => format!("{expected}: yes"),
    };
    vec![
        cell.key.guest.name().to_owned(),
        cell.key.port_policy.name().to_owned(),
        on_or_off(cell.key.eviction).to_owned(),
        cell.key.first_connection().to_owned(),
        optional_ms(cell.resume_p50_first_decile_ms),
        optional_ms(cell.resume_p50_last_decile_ms),
        optional_slope(cell.flatness.slope_ms_per_cycle),
        cell.flatness
            .ci95
            .map_or_else(dash, |[low, high]| format!("{low:+.3} {high:+.3}")),
        attempts_in_words(cell),
        cell.vsocks_leaked
            .map_or_else(dash, |leaked| leaked.to_string()),
        cell.verdict.name().to_owned(),
        expected,
    ]
}

/// The run and its peers side by side.
fn peers_table(report: &Report) -> String {
    let unit = report.clock.unit();
    let slope = format!("slope {unit}/cycle");
    let mut table = Table::with_header(&[
        unit,
        "suspend p50",
        "suspend p99",
        "resume p50",
        "resume p99",
        &slope,
        "MiB written p50",
        "verdict",
    ]);
    for row in peer_rows(report) {
        table.row(row.to_vec());
    }
    table.to_text()
}

/// Resume latency, of `clock`, of guests that start with thousands of leaked pairs.
pub fn scale_table(runs: &[ScaleRun], clock: Clock) -> String {
    let header = scale_header(clock);
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = Table::with_header(&header);
    for run in runs {
        table.row(scale_row(run).to_vec());
    }
    table.to_text()
}

/// Rows of cells. The first column is aligned left, columns of figures right.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn with_header(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|&title| title.to_owned()).collect()],
        }
    }

    fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn quantiles_row(&mut self, title: &str, figures: Option<Quantiles>) {
        let values = figures.map(|q| [q.p50, q.p90, q.p99, q.max]);
        let mut cells = vec![title.to_owned()];
        cells.extend(values.map_or_else(
            || vec![dash(); 4],
            |values| values.iter().map(|ms| format!("{ms:.2}")).collect(),
        ));
        self.rows.push(cells);
    }

    fn to_text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                let cell = if column > 0 && self.holds_figures(column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                };
                line.push_str(gap);
                line.push_str(&cell);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Whether every cell of a column, except the header, starts like a number.
    fn holds_figures(&self, column: usize) -> bool {
        self.rows
            .iter()
            .skip(1)
            .filter_map(|row| row.get(column))
            .all(|cell| cell.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+'))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::record::{
        Attempt, FailedCheck, Host, KvmKind, Peer, Phases, PortPolicy, Resources, Run, RunEnd,
        Setting, SubjectDescription,
    };

    fn cycle(number: u32, attempts: usize) -> Cycle {
        let attempt = Attempt {
            local_port: None,
            outcome: AttemptOutcome::Ok,
            ms: 1.0,
        };
        Cycle {
            cycle: number,
            suspend_ms: 2.0,
            resume_ms: 10.0 * f64::from(number),
            suspend_phases_ms: Phases::with_remainder([("pause".to_owned(), 1.5)], 2.0),
            resume_phases_ms: Phases::with_remainder([("spawn\u{1b}[2J".to_owned(), 1.0)], 10.0),
            readiness: vec![attempt; attempts],
            guest_open_vsocks: None,
            image_bytes_written: None,
            resources: Resources::default(),
        }
    }

    #[test]
    fn phases_are_listed_under_their_operation() {
        let table = phases_table(&[cycle(1, 1), cycle(2, 1), cycle(3, 1)], Clock::Real);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "suspend          2.00   2.00   2.00   2.00");
        assert!(lines[2].starts_with("  pause"));
        assert!(lines[4].starts_with("resume"), "{table}");
        assert!(lines[4].ends_with("20.00  28.00  29.80  30.00"), "{table}");
    }

    #[test]
    fn a_hostile_name_cannot_move_the_cursor() {
        assert!(!phases_table(&[cycle(1, 1)], Clock::Real).contains('\u{1b}'));
    }

    #[test]
    fn attempts_are_summed_up_in_words() {
        assert_eq!(
            readiness_line(&[cycle(1, 1), cycle(2, 1)]),
            "readiness: one attempt in each of 2 cycles"
        );
        assert!(readiness_line(&[cycle(1, 1), cycle(2, 4)]).contains("at most 4 in one"));
    }

    fn report(cycles: Vec<Cycle>) -> Report {
        let run = Run {
            subject: SubjectDescription::default(),
            cycles_wanted: 3,
            looks: Vec::new(),
            cycles,
            end: RunEnd::Complete,
            vsocks_before: None,
        };
        let host = Host {
            kvm: KvmKind::Unknown,
            details: BTreeMap::new(),
        };
        Report::of_run(
            Setting {
                host,
                clock: Clock::Virtual,
                started_at: String::new(),
            },
            run,
        )
    }

    #[test]
    fn a_peer_whose_check_failed_shows_the_check() {
        let mut report = report(vec![cycle(1, 1)]);
        let failed = FailedCheck {
            cycle: 2,
            check: "resume".to_owned(),
            message: "resume failed: no\nanswer".to_owned(),
        };
        report.peers.push(Peer {
            subject: SubjectDescription::default(),
            cycles: vec![cycle(1, 1)],
            flatness: report.flatness.clone(),
            failed_check: Some(failed),
        });
        let table = peers_table(&report);
        assert!(
            table.contains("failed in cycle 2: resume failed: no\u{fffd}answer"),
            "{table}"
        );
        assert!(table.starts_with("virtual ms"), "{table}");
    }

    #[test]
    fn rules_are_listed_with_their_intervals_and_quiet_resources_together() {
        let leaking = |number: u32| {
            let resources = [("vmm_threads", 4), ("vmm_timers", u64::from(number))];
            Cycle {
                resume_ms: 10.0,
                resources: resources.into_iter().collect(),
                ..cycle(number, 1)
            }
        };
        let report = report((1..=60).map(leaking).collect());
        let tables = tables_of(&report).join("\n");
        assert!(tables.contains("growth"), "{tables}");
        assert!(tables.contains("\nvmm_timers"), "{tables}");
        assert!(tables.contains("rising"), "{tables}");
        assert!(tables.contains("\n1 resource"), "{tables}");
        assert!(!tables.contains("vmm_threads"), "{tables}");
    }

    #[test]
    fn a_scale_run_that_failed_shows_its_error() {
        let run = ScaleRun {
            attempts_max: 70,
            error: Some("not ready within 60 s".to_owned()),
            ..ScaleRun::new(PortPolicy::Fixed, false, 10_000)
        };
        let table = scale_table(&[run], Clock::Real);
        assert!(table.contains("not ready within 60 s"), "{table}");
    }
}
