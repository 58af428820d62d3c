//! The plots over cycles: resume and suspend latency, readiness attempts, phases stacked.

use std::fmt::Write;

use super::plot::{Plot, SIDE, ValueAxis, mark, x};
use super::text::{Text, count, ms};
use crate::judge::Line;
use crate::record::{AttemptOutcome, Clock, Cycle, Phases, UNATTRIBUTED, names_in_order};
use crate::statistics::{Quantiles, as_float, decile_length, decile_medians, median};

/// As many hues as can be told apart side by side, also by colour-blind readers.
const HUES: usize = 7;

/// How a phase is painted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    /// One of the hues.
    Hue(usize),
    /// The grey that all small phases share.
    Small,
    /// The part of the total that belongs to no phase.
    Unattributed,
}

impl Paint {
    pub(super) fn class(self) -> String {
        match self {
            Self::Hue(number) => format!("hue-{number}"),
            Self::Small => "small-phases".to_owned(),
            Self::Unattributed => "unattributed".to_owned(),
        }
    }
}

/// Phase names in order, each with its paint.
pub(super) fn painted(cycles: &[Cycle], of: fn(&Cycle) -> &Phases) -> Vec<(String, Paint)> {
    let names = names_in_order(cycles.iter().map(of));
    let typical = |name: &str| {
        median(
            &cycles
                .iter()
                .filter_map(|c| of(c).ms(name))
                .collect::<Vec<_>>(),
        )
        .unwrap_or(0.0)
    };
    let mut largest: Vec<(&str, f64)> = names
        .iter()
        .filter(|name| **name != UNATTRIBUTED)
        .map(|&name| (name, typical(name)))
        .collect();
    largest.sort_by(|a, b| b.1.total_cmp(&a.1));
    largest.truncate(HUES);
    let mut hue = 0;
    let mut paint = |name: &str| {
        if name == UNATTRIBUTED {
            return Paint::Unattributed;
        }
        if !largest.iter().any(|(large, _)| *large == name) {
            return Paint::Small;
        }
        hue += 1;
        Paint::Hue(hue)
    };
    names
        .into_iter()
        .map(|name| (name.to_owned(), paint(name)))
        .collect()
}

/// Latency of every resume, with the line and the deciles that the rules compare.
pub(super) fn resume_plot(values: &[f64], line: Option<Line>, clock: Clock) -> String {
    let unit = clock.unit();
    let axis = latency_axis(values);
    let mut drawing = String::new();
    if let Some((first, last)) = decile_medians(values) {
        let width = SIDE * as_float(decile_length(values.len())) / as_float(values.len());
        for (left, level) in [(0.0, first), (SIDE - width, last)] {
            let (y, right) = (axis.y(level), left + width);
            // Writing to a string cannot fail, here and below.
            let _ = write!(
                drawing,
                r#"<path class="decile" d="M{left:.1} 0H{right:.1}V1000H{left:.1}Z"/><path class="decile-median" d="M{left:.1} {y:.1}H{right:.1}"/>"#
            );
        }
    }
    drawing.push_str(&marks("resume", values, &axis, clock));
    if let Some(line) = line {
        let y = |cycle: usize| axis.y(line.intercept + line.slope * as_float(cycle));
        let count = values.len();
        let _ = write!(
            drawing,
            r#"<path class="trend" d="M{:.2} {:.1}L{:.2} {:.1}"/>"#,
            x(line.from_cycle - 1, count),
            y(line.from_cycle),
            x(count - 1, count),
            y(count)
        );
    }
    let deciles = decile_medians(values).map_or_else(String::new, |(first, last)| {
        format!(
            " Medians of the first and last tenth: {} and {} {unit}.",
            ms(first),
            ms(last)
        )
    });
    let legend = format!(
        r#"<ul class="legend"><li><i class="key dot resume"></i>one resume</li><li><i class="key line trend"></i>trend</li><li><i class="key band"></i>first and last tenth with median</li></ul><p class="note">{deciles}{}</p>"#,
        beyond(values, &axis, clock)
    );
    let plot = Plot {
        description: &format!(
            "Resume latency of {} cycles in {unit}.{deciles}",
            values.len()
        ),
        axis,
        count: values.len(),
        height_px: 240,
        drawing: &drawing,
        x_labels: true,
    };
    figure(&format!("Resume, {unit}"), &legend, &plot.to_html())
}

/// Latency of every suspend.
pub(super) fn suspend_plot(values: &[f64], clock: Clock) -> String {
    let unit = clock.unit();
    let axis = latency_axis(values);
    let plot = Plot {
        description: &format!("Suspend latency of {} cycles in {unit}", values.len()),
        axis,
        count: values.len(),
        height_px: 130,
        drawing: &marks("suspend", values, &axis, clock),
        x_labels: true,
    };
    let note = beyond(values, &axis, clock);
    let note = if note.is_empty() {
        note
    } else {
        format!(r#"<p class="note">{note}</p>"#)
    };
    figure(&format!("Suspend, {unit}"), &note, &plot.to_html())
}

/// From zero to the largest value, or lower if a few outliers would flatten all others.
fn latency_axis(values: &[f64]) -> ValueAxis {
    let Some(q) = Quantiles::of(values) else {
        return ValueAxis::covering(1.0);
    };
    let without_outliers = q.p90 * 3.0;
    ValueAxis::covering(if q.max > without_outliers && q.p99 <= without_outliers {
        without_outliers
    } else {
        q.max
    })
}

/// A note on the values that the axis does not reach.
fn beyond(values: &[f64], axis: &ValueAxis, clock: Clock) -> String {
    let above = values.iter().filter(|value| **value > axis.top()).count();
    if above == 0 {
        return String::new();
    }
    let largest = values.iter().copied().fold(0.0, f64::max);
    format!(
        " {above} beyond the axis, drawn as squares on its edge. The largest is {} {}.",
        ms(largest),
        clock.unit()
    )
}

fn marks(class: &str, values: &[f64], axis: &ValueAxis, clock: Clock) -> String {
    let density = if values.len() > 400 { " dense" } else { "" };
    values
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let outside = if *value > axis.top() { " beyond" } else { "" };
            let (ms, unit) = (ms(*value), clock.unit());
            let title = format!("cycle {}: {class} {ms} {unit}", index + 1);
            let class = format!("{class}{density}{outside}");
            mark(&class, x(index, values.len()), axis.y(*value), &title)
        })
        .collect()
}

/// Readiness attempts of every resume, failed ones in a colour of their own.
pub(super) fn attempts_plot(cycles: &[Cycle]) -> String {
    let most = cycles.iter().map(Cycle::attempts).max().unwrap_or(0);
    let axis = ValueAxis::covering_counts(most);
    let width = (SIDE / as_float(cycles.len().max(1)) * 0.72).min(18.0);
    let mut drawing = String::new();
    for (index, cycle) in cycles.iter().enumerate() {
        let left = x(index, cycles.len()) - width / 2.0;
        let failed = cycle
            .readiness
            .iter()
            .filter(|a| a.outcome != AttemptOutcome::Ok)
            .count();
        let (top, middle) = (
            axis.y(f64::from(cycle.attempts())),
            axis.y(as_float(failed)),
        );
        let _ = write!(
            drawing,
            r#"<g class="bar"><title>cycle {}: {}</title><path class="attempt-ok" d="M{left:.2} {top:.1}h{width:.2}V{middle:.1}h-{width:.2}Z"/>"#,
            cycle.cycle,
            Text(&attempts_text(cycle)),
        );
        if failed > 0 {
            let _ = write!(
                drawing,
                r#"<path class="attempt-failed" d="M{left:.2} {middle:.1}h{width:.2}V1000h-{width:.2}Z"/>"#
            );
        }
        drawing.push_str("</g>");
    }
    let summary = if most <= 1 {
        "One attempt in every cycle.".to_owned()
    } else {
        format!("At most {} attempts in one cycle.", count(most))
    };
    let plot = Plot {
        description: &format!("Readiness attempts per cycle. {summary}"),
        axis,
        count: cycles.len(),
        height_px: if most <= 1 { 46 } else { 120 },
        drawing: &drawing,
        x_labels: true,
    };
    let legend = format!(
        r#"<ul class="legend"><li><i class="key block attempt-ok"></i>answered</li><li><i class="key block attempt-failed"></i>failed</li></ul><p class="note">{summary}</p>"#
    );
    figure("Readiness attempts", &legend, &plot.to_html())
}

/// The attempts of one resume in words, such as `3 attempts: 2 reset, 1 ok`: in the order in which
/// the outcomes first occurred.
pub(super) fn attempts_text(cycle: &Cycle) -> String {
    let mut outcomes: Vec<(&str, u32)> = Vec::new();
    for attempt in &cycle.readiness {
        let name = attempt.outcome.name();
        match outcomes.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => outcomes.push((name, 1)),
        }
    }
    let list: Vec<String> = outcomes
        .iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    let word = if cycle.readiness.len() == 1 {
        "attempt"
    } else {
        "attempts"
    };
    format!("{} {word}: {}", cycle.readiness.len(), list.join(", "))
}

/// Phases of every cycle, stacked in their order.
pub(super) fn phases_plot(
    title: &str,
    cycles: &[Cycle],
    of: fn(&Cycle) -> &Phases,
    painted: &[(String, Paint)],
    clock: Clock,
) -> String {
    let totals: Vec<f64> = cycles.iter().map(|cycle| of(cycle).sum_ms()).collect();
    let axis = latency_axis(&totals);
    let mut levels = vec![0.0; cycles.len()];
    let mut drawing = String::new();
    for (name, paint) in painted {
        let before = levels.clone();
        for (level, cycle) in levels.iter_mut().zip(cycles) {
            *level += of(cycle).ms(name).unwrap_or(0.0);
        }
        let _ = write!(
            drawing,
            r#"<path class="phase {}" d="{}"><title>{}</title></path>"#,
            paint.class(),
            steps(&before, &levels, &axis),
            Text(name)
        );
    }
    let plot = Plot {
        description: &format!("{title}, stacked, for each of {} cycles", cycles.len()),
        axis,
        count: cycles.len(),
        height_px: 220,
        drawing: &drawing,
        x_labels: true,
    };
    figure(
        &format!("{title}, {}", clock.unit()),
        &phases_legend(painted),
        &plot.to_html(),
    )
}

/// The area between two levels, with one step per cycle.
fn steps(lower: &[f64], upper: &[f64], axis: &ValueAxis) -> String {
    let edge = |index: usize| SIDE * as_float(index) / as_float(upper.len().max(1));
    let mut path = format!(
        "M0 {:.1}",
        lower.first().map_or(SIDE, |level| axis.y(*level))
    );
    for (index, level) in upper.iter().enumerate() {
        let _ = write!(path, "V{:.1}H{:.2}", axis.y(*level), edge(index + 1));
    }
    for (index, level) in lower.iter().enumerate().rev() {
        let _ = write!(path, "V{:.1}H{:.2}", axis.y(*level), edge(index));
    }
    path.push('Z');
    path
}

fn phases_legend(painted: &[(String, Paint)]) -> String {
    let small = painted
        .iter()
        .filter(|(_, paint)| *paint == Paint::Small)
        .count();
    let mut items = String::new();
    for (name, paint) in painted.iter().filter(|(_, paint)| *paint != Paint::Small) {
        let _ = write!(
            items,
            r#"<li><i class="key block {}"></i>{}</li>"#,
            paint.class(),
            Text(name)
        );
    }
    if small > 0 {
        let _ = write!(
            items,
            r#"<li><i class="key block small-phases"></i>{small} smaller phases</li>"#
        );
    }
    format!(r#"<ul class="legend">{items}</ul>"#)
}

fn figure(title: &str, legend: &str, plot: &str) -> String {
    format!(
        r#"<figure><figcaption><h3>{}</h3>{legend}</figcaption>{plot}</figure>"#,
        Text(title)
    )
}
