//! Plain text tables for terminals: phases, readiness attempts, the matrix, peers, scale.
//!
//! Nothing is coloured and nothing depends on colour; control characters of a hostile report are
//! replaced, so that a table cannot move the cursor.

use crate::matrix::{Cell, Expectation, Matrix};
use crate::phases::{Phases, names_in_order};
use crate::record::{AttemptOutcome, Cycle, Peer, Report};
use crate::scale::ScaleRun;
use crate::statistics::{Quantiles, as_float, median};

/// Everything that a report holds, one text per table, in the order in which people want it. The
/// verdict is left to whoever prints it.
pub fn tables_of(report: &Report) -> Vec<String> {
    let mut tables = Vec::new();
    if report.has_run() {
        tables.push(phases_table(&report.cycles));
        tables.push(readiness_line(&report.cycles));
    }
    if !report.peers.is_empty() {
        tables.push(peers_table(report));
    }
    if let Some(matrix) = &report.matrix {
        tables.push(matrix_table(matrix));
        tables.push(format!("matrix: {}", matrix.in_words()));
    }
    if !report.scale.is_empty() {
        tables.push(scale_table(&report.scale));
    }
    tables
}

/// p50, p90, p99 and max of suspend and resume and of each of their phases.
fn phases_table(cycles: &[Cycle]) -> String {
    let mut table = Table::with_header(&["ms", "p50", "p90", "p99", "max"]);
    for section in phase_sections(cycles) {
        table.row_of(section.title, section.total);
        for (name, figures) in section.phases {
            table.row_of(&format!("  {}", visible(&name)), figures);
        }
    }
    table.to_text()
}

/// Suspend or resume with the figures of each phase.
pub(crate) struct PhaseSection {
    pub(crate) title: &'static str,
    pub(crate) total: Option<Quantiles>,
    pub(crate) phases: Vec<(String, Option<Quantiles>)>,
}

/// The figures behind [`phases_table`], for other renderers too.
pub(crate) fn phase_sections(cycles: &[Cycle]) -> [PhaseSection; 2] {
    let section = |title, total: fn(&Cycle) -> f64, phases: fn(&Cycle) -> &Phases| {
        let totals: Vec<f64> = cycles.iter().map(total).collect();
        let names = names_in_order(cycles.iter().map(phases));
        let figures = names.into_iter().map(|name| {
            let values: Vec<f64> = cycles
                .iter()
                .filter_map(|cycle| phases(cycle).ms(name))
                .collect();
            (name.to_owned(), Quantiles::of(&values))
        });
        PhaseSection {
            title,
            total: Quantiles::of(&totals),
            phases: figures.collect(),
        }
    };
    [
        section(
            "suspend",
            |cycle| cycle.suspend_ms,
            |cycle| &cycle.suspend_phases_ms,
        ),
        section(
            "resume",
            |cycle| cycle.resume_ms,
            |cycle| &cycle.resume_phases_ms,
        ),
    ]
}

/// All readiness attempts of a run in one line.
fn readiness_line(cycles: &[Cycle]) -> String {
    let attempts: u64 = cycles.iter().map(|cycle| u64::from(cycle.attempts())).sum();
    let most = cycles.iter().map(Cycle::attempts).max().unwrap_or(0);
    if most <= 1 {
        return format!("readiness: one attempt in each of {} cycles", cycles.len());
    }
    let refused = cycles
        .iter()
        .flat_map(|cycle| &cycle.readiness)
        .filter(|attempt| attempt.outcome != AttemptOutcome::Ok)
        .count();
    format!(
        "readiness: {attempts} attempts in {} cycles, at most {most} in one, {refused} without success",
        cycles.len()
    )
}

/// One line per cell.
fn matrix_table(matrix: &Matrix) -> String {
    let mut table = Table::with_header(&[
        "guest",
        "ports",
        "eviction",
        "first",
        "p50 first",
        "p50 last",
        "slope ms/cycle",
        "95 % interval",
        "attempts",
        "leaked",
        "verdict",
        "expected",
    ]);
    for cell in &matrix.cells {
        table.row(matrix_row(cell));
    }
    table.to_text()
}

fn matrix_row(cell: &Cell) -> Vec<String> {
    let expected = match cell.expected {
        Expectation::Either => "either",
        Expectation::Flat => "flat",
        Expectation::Rising => "rising",
    };
    let expected = match cell.objection() {
        Some(objection) => format!("{expected}: NO, {objection}"),
        None => format!("{expected}: yes"),
    };
    vec![
        cell.key.guest.name().to_owned(),
        cell.key.port_policy.name().to_owned(),
        if cell.key.eviction { "on" } else { "off" }.to_owned(),
        if cell.key.monitor_first {
            "monitor"
        } else {
            "status"
        }
        .to_owned(),
        optional_ms(cell.resume_p50_first_decile_ms),
        optional_ms(cell.resume_p50_last_decile_ms),
        cell.flatness
            .slope_ms_per_cycle
            .map_or_else(dash, |slope| format!("{slope:+.3}")),
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

/// Most attempts of one resume, and all of them by outcome.
pub(crate) fn attempts_in_words(cell: &Cell) -> String {
    let outcomes = cell.attempts_by_outcome.iter();
    let outcomes = in_words(outcomes.map(|(outcome, count)| (*outcome, *count)));
    format!("max {} ({outcomes})", cell.attempts_max)
}

fn in_words<N: std::fmt::Display>(counts: impl Iterator<Item = (AttemptOutcome, N)>) -> String {
    let counts: Vec<String> = counts
        .map(|(outcome, count)| format!("{count} {}", outcome.name()))
        .collect();
    counts.join(", ")
}

/// The run and its peers side by side.
fn peers_table(report: &Report) -> String {
    let mut table = Table::with_header(&[
        "",
        "suspend p50",
        "suspend p99",
        "resume p50",
        "resume p99",
        "slope ms/cycle",
        "MiB written p50",
        "verdict",
    ]);
    for row in peer_rows(report) {
        table.row(row.to_vec());
    }
    table.to_text()
}

/// The figures behind [`peers_table`], the run itself first.
pub(crate) fn peer_rows(report: &Report) -> Vec<[String; 8]> {
    let own = Peer {
        subject: report.config.subject.clone(),
        cycles: report.cycles.clone(),
        flatness: report.flatness.clone(),
        failed_check: report.failed_check.clone(),
    };
    std::iter::once(&own)
        .chain(&report.peers)
        .map(peer_row)
        .collect()
}

fn peer_row(peer: &Peer) -> [String; 8] {
    let suspend: Vec<f64> = peer.cycles.iter().map(|cycle| cycle.suspend_ms).collect();
    let resume: Vec<f64> = peer.cycles.iter().map(|cycle| cycle.resume_ms).collect();
    let (suspend, resume) = (Quantiles::of(&suspend), Quantiles::of(&resume));
    [
        visible(&peer.subject.name),
        optional_ms(suspend.map(|q| q.p50)),
        optional_ms(suspend.map(|q| q.p99)),
        optional_ms(resume.map(|q| q.p50)),
        optional_ms(resume.map(|q| q.p99)),
        peer.flatness
            .slope_ms_per_cycle
            .map_or_else(dash, |slope| format!("{slope:+.3}")),
        median_mib_written(&peer.cycles).map_or_else(dash, |mib| format!("{mib:.1}")),
        peer_verdict(peer),
    ]
}

fn peer_verdict(peer: &Peer) -> String {
    match (&peer.failed_check, peer.flatness.flat) {
        (Some(failed), _) => format!(
            "failed in cycle {}: {}",
            failed.cycle,
            visible(&failed.message)
        ),
        (None, true) => "flat".to_owned(),
        (None, false) => "not flat".to_owned(),
    }
}

fn median_mib_written(cycles: &[Cycle]) -> Option<f64> {
    let mib: Vec<f64> = cycles
        .iter()
        .filter_map(|cycle| cycle.image_bytes_written)
        .filter_map(|bytes| usize::try_from(bytes).ok())
        .map(|bytes| as_float(bytes) / 1_048_576.0)
        .collect();
    median(&mib)
}

/// Resume latency of guests that start with thousands of leaked pairs.
pub fn scale_table(runs: &[ScaleRun]) -> String {
    let mut table = Table::with_header(&SCALE_HEADER);
    for run in runs {
        table.row(scale_row(run).to_vec());
    }
    table.to_text()
}

pub(crate) const SCALE_HEADER: [&str; 11] = [
    "ports",
    "eviction",
    "leaked pairs",
    "resumes",
    "resume p50",
    "resume max",
    "longest phase",
    "attempts max",
    "attempts",
    "as expected",
    "stopped by",
];

/// The figures behind [`scale_table`].
pub(crate) fn scale_row(run: &ScaleRun) -> [String; 11] {
    let resume = Quantiles::of(&run.resume_ms);
    let longest = run.longest_phase();
    let outcomes = in_words(run.attempts_by_outcome().into_iter());
    [
        run.port_policy.name().to_owned(),
        if run.eviction { "on" } else { "off" }.to_owned(),
        run.leaked_pairs.to_string(),
        run.resume_ms.len().to_string(),
        optional_ms(resume.map(|q| q.p50)),
        optional_ms(resume.map(|q| q.max)),
        longest.map_or_else(dash, |(name, ms)| {
            format!("{} {}", visible(name), ms_text(ms))
        }),
        run.attempts_max.to_string(),
        if outcomes.is_empty() {
            dash()
        } else {
            outcomes
        },
        run.objection()
            .map_or_else(|| "yes".to_owned(), |objection| format!("NO, {objection}")),
        run.error.as_deref().map_or_else(dash, visible),
    ]
}

/// Milliseconds with about three digits that count.
pub(crate) fn ms_text(ms: f64) -> String {
    let digits = if ms >= 100.0 {
        0
    } else if ms >= 10.0 {
        1
    } else {
        2
    };
    format!("{ms:.digits$}")
}

fn optional_ms(ms: Option<f64>) -> String {
    ms.map_or_else(dash, ms_text)
}

fn dash() -> String {
    "-".to_owned()
}

fn visible(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Rows of cells; the first column is flush left, figures flush right.
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

    fn row_of(&mut self, title: &str, figures: Option<Quantiles>) {
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
                let is_figure = column > 0 && self.is_figures(column);
                let cell = if is_figure {
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

    /// A column whose every cell below the header starts as a number does.
    fn is_figures(&self, column: usize) -> bool {
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
    use crate::matrix::PortPolicy;
    use crate::record::{Attempt, FailedCheck, Host, KvmKind, SubjectDescription};
    use crate::run::{Run, RunEnd};

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
        }
    }

    #[test]
    fn phases_are_listed_under_what_they_belong_to() {
        let table = phases_table(&[cycle(1, 1), cycle(2, 1), cycle(3, 1)]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "suspend          2.00   2.00   2.00   2.00");
        assert!(lines[2].starts_with("  pause"));
        assert!(lines[4].starts_with("resume"), "{table}");
        assert!(lines[4].ends_with("20.00  28.00  29.80  30.00"), "{table}");
    }

    #[test]
    fn a_hostile_name_cannot_move_the_cursor() {
        assert!(!phases_table(&[cycle(1, 1)]).contains('\u{1b}'));
    }

    #[test]
    fn one_attempt_each_is_said_in_words() {
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
            cycles,
            end: RunEnd::Complete,
            vsocks_before: None,
        };
        let host = Host {
            kvm: KvmKind::Unknown,
            details: BTreeMap::new(),
        };
        Report::of_run(host, String::new(), run)
    }

    #[test]
    fn a_peer_whose_check_failed_shows_which_one() {
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
    }

    #[test]
    fn a_scale_run_that_was_stopped_says_by_what() {
        let run = ScaleRun {
            port_policy: PortPolicy::Fixed,
            eviction: false,
            leaked_pairs: 10_000,
            resume_ms: Vec::new(),
            resumes: Vec::new(),
            attempts_max: 70,
            error: Some("not ready within 60 s".to_owned()),
        };
        let table = scale_table(&[run]);
        assert!(table.contains("not ready within 60 s"), "{table}");
    }
}
