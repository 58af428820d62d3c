//! Everything else that could grow, as small multiples: one plot for each resource.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::plot::{SIDE, x};
use super::rules::class;
use super::text::{Text, sentence};
use crate::judge::{amount, resource_in_words};
use crate::record::{Cycle, Flatness, Rule, Unit};

/// The section with a plot for each resource; empty if none was recorded.
pub(super) fn section(cycles: &[Cycle], flatness: &Flatness) -> String {
    let mut series: BTreeMap<&str, Vec<(usize, u64)>> = BTreeMap::new();
    for (index, cycle) in cycles.iter().enumerate() {
        for (name, value) in cycle.resources.iter() {
            series.entry(name).or_default().push((index, value));
        }
    }
    if series.is_empty() {
        return String::new();
    }
    let cards: String = series
        .iter()
        .map(|(name, values)| {
            let rule = flatness.rules.iter().find(|rule| rule.series == *name);
            card(name, values, cycles.len(), rule)
        })
        .collect();
    format!(
        r#"<section aria-labelledby="resources"><h2 id="resources">Everything else that could grow</h2><p class="note">What was in use after each cycle. Every axis begins at zero; the number at its top is the largest value. A leak raises the floor of a series, whatever its peaks do.</p><ul class="cells resources">{cards}</ul></section>"#
    )
}

fn card(name: &str, values: &[(usize, u64)], count: usize, rule: Option<&Rule>) -> String {
    let unit = if name.ends_with("_bytes") {
        Unit::Bytes
    } else {
        Unit::Count
    };
    let ends = [values.first(), values.last()].map(|end| end.map_or(0, |(_, value)| *value));
    let largest = values.iter().map(|(_, value)| *value).max().unwrap_or(0);
    let shown = |value: u64| amount(as_number(value), unit);
    let (class, word, found) = match rule {
        Some(rule) => (
            class(rule.outcome),
            rule.outcome.name(),
            format!(
                "{}. {}.",
                sentence(&rule.found),
                sentence(&rule.requirement)
            ),
        ),
        None => ("", "not judged", String::new()),
    };
    format!(
        r#"<li class="cell {class}" title="{}"><h3>{} <span class="chip">{word}</span></h3><div class="sparkline"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{}"><path class="base" d="M0 1000H1000"/><path class="series" d="{}"/></svg><span class="top">{}</span></div><p class="ends"><b>{} &rarr; {}</b></p></li>"#,
        Text(&found),
        Text(&resource_in_words(name)),
        Text(&format!("{}: {word}", resource_in_words(name))),
        line(values, count, largest),
        Text(&shown(largest)),
        Text(&shown(ends[0])),
        Text(&shown(ends[1])),
    )
}

fn line(values: &[(usize, u64)], count: usize, largest: u64) -> String {
    // Room for the number above the line.
    let top = 1.3 * as_number(largest.max(1));
    let mut path = String::new();
    for (index, value) in values {
        let command = if path.is_empty() { 'M' } else { 'L' };
        // The edge would cut a line on it in half.
        let y = (SIDE - SIDE * as_number(*value) / top).clamp(12.0, SIDE - 12.0);
        // Writing to a string cannot fail.
        let _ = write!(path, "{command}{:.1} {y:.1}", x(*index, count));
    }
    path
}

/// Sizes beyond 2^53 bytes lose digits that no plot shows.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn as_number(value: u64) -> f64 {
    value as f64
}
