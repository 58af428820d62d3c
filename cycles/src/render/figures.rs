//! The rows that the text tables and the page share.
//!
//! Control characters of a hostile report are replaced here; markup is escaped by the page.

use std::collections::BTreeMap;

use crate::judge::amount;
use crate::numbers::three_digits;
use crate::record::{
    AttemptOutcome, Cell, Clock, Cycle, Flatness, Outcome, Peer, Phases, Report, Rule, ScaleRun,
    Unit, names_in_order, on_or_off,
};
use crate::statistics::{Quantiles, as_float, median};

/// Suspend or resume with the figures of each phase.
pub(super) struct PhaseSection {
    pub(super) title: &'static str,
    pub(super) total: Option<Quantiles>,
    pub(super) phases: Vec<(String, Option<Quantiles>)>,
}

/// Suspend and resume, each with the figures of its phases.
pub(super) fn phase_sections(cycles: &[Cycle]) -> [PhaseSection; 2] {
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

/// The most attempts of one resume, and all attempts by outcome.
pub(super) fn attempts_in_words(cell: &Cell) -> String {
    let outcomes = outcomes_in_words(&cell.attempts_by_outcome);
    format!("max {} ({outcomes})", cell.attempts_max)
}

fn outcomes_in_words(counts: &BTreeMap<AttemptOutcome, u64>) -> String {
    let counts: Vec<String> = counts
        .iter()
        .map(|(outcome, count)| format!("{count} {}", outcome.name()))
        .collect();
    counts.join(", ")
}

/// What the rules of a verdict found: one row for each rule on latency and for each resource that is
/// not flat, and one for all other resources together.
pub(super) fn rule_rows(flatness: &Flatness) -> Vec<[String; 6]> {
    let on_latency = |rule: &&Rule| rule.series == "resume";
    let told = flatness
        .rules
        .iter()
        .filter(|rule| on_latency(rule) || rule.outcome != Outcome::Flat);
    let mut rows: Vec<[String; 6]> = told.map(rule_row).collect();
    let quiet = flatness
        .rules
        .iter()
        .filter(|rule| !on_latency(rule) && rule.outcome == Outcome::Flat)
        .count();
    if quiet > 0 {
        let name = if quiet == 1 {
            "1 resource".to_owned()
        } else {
            format!("{quiet} resources")
        };
        let outcome = Outcome::Flat.name().to_owned();
        rows.push([name, dash(), dash(), dash(), dash(), outcome]);
    }
    rows
}

fn rule_row(rule: &Rule) -> [String; 6] {
    let name = if rule.series == "resume" {
        visible(&rule.name)
    } else {
        visible(&rule.series)
    };
    let figure = |value| rule_figure(value, rule.unit);
    [
        name,
        figure(rule.value),
        figure(rule.lower),
        figure(rule.upper),
        figure(rule.bound),
        rule.outcome.name().to_owned(),
    ]
}

/// A figure of a rule in its unit.
pub(super) fn rule_figure(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Percent => format!("{value:+.1} %"),
        Unit::PercentagePoints => format!("{value:+.1} points"),
        Unit::Count | Unit::Bytes => amount(value, unit),
    }
}

/// The run and its peers, the run first.
pub(super) fn peer_rows(report: &Report) -> Vec<[String; 8]> {
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
        optional_slope(peer.flatness.slope_ms_per_cycle),
        median_mib_written(&peer.cycles).map_or_else(dash, |mib| format!("{mib:.1}")),
        peer_verdict(peer),
    ]
}

fn peer_verdict(peer: &Peer) -> String {
    match &peer.failed_check {
        Some(failed) => format!(
            "failed in cycle {}: {}",
            failed.cycle,
            visible(&failed.message)
        ),
        None => peer.flatness.outcome.name().to_owned(),
    }
}

/// Median of what a suspend wrote, in MiB.
pub(super) fn median_mib_written(cycles: &[Cycle]) -> Option<f64> {
    let mib: Vec<f64> = cycles
        .iter()
        .filter_map(|cycle| cycle.image_bytes_written)
        .filter_map(|bytes| usize::try_from(bytes).ok())
        .map(|bytes| as_float(bytes) / 1_048_576.0)
        .collect();
    median(&mib)
}

/// The columns of [`scale_row`].
pub(super) fn scale_header(clock: Clock) -> [String; 11] {
    let unit = clock.unit();
    [
        "ports".to_owned(),
        "eviction".to_owned(),
        "leaked pairs".to_owned(),
        "resumes".to_owned(),
        format!("resume p50, {unit}"),
        format!("resume max, {unit}"),
        format!("longest phase, {unit}"),
        "attempts max".to_owned(),
        "attempts by outcome".to_owned(),
        "as expected".to_owned(),
        "error".to_owned(),
    ]
}

/// One scale run.
pub(super) fn scale_row(run: &ScaleRun) -> [String; 11] {
    let resume = Quantiles::of(&run.resume_ms);
    let longest = run.longest_phase();
    let outcomes = outcomes_in_words(&run.attempts_by_outcome());
    [
        run.port_policy.name().to_owned(),
        on_or_off(run.eviction).to_owned(),
        run.leaked_pairs.to_string(),
        run.resume_ms.len().to_string(),
        optional_ms(resume.map(|q| q.p50)),
        optional_ms(resume.map(|q| q.max)),
        longest.map_or_else(dash, |(name, ms)| {
            format!("{} {}", visible(name), three_digits(ms))
        }),
        run.attempts_max.to_string(),
        if outcomes.is_empty() {
            dash()
        } else {
            outcomes
        },
        run.mismatch()
            .map_or_else(|| "yes".to_owned(), |mismatch| format!("NO, {mismatch}")),
        run.error.as_deref().map_or_else(dash, visible),
    ]
}

/// Milliseconds, or a dash.
pub(super) fn optional_ms(ms: Option<f64>) -> String {
    ms.map_or_else(dash, three_digits)
}

/// A slope or one end of its interval, or a dash.
pub(super) fn optional_slope(slope: Option<f64>) -> String {
    slope.map_or_else(dash, |slope| format!("{slope:+.3}"))
}

/// Stands for a missing value.
pub(super) fn dash() -> String {
    "-".to_owned()
}

/// `text` with control characters replaced, so that it cannot move a terminal's cursor.
pub(super) fn visible(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
