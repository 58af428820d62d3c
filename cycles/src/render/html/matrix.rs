//! The matrix as small multiples on one scale, and as a table.

use std::fmt::Write;

use super::details::table;
use super::plot::{SIDE, ValueAxis, x};
use super::text::{Text, count, ms, sentence};
use crate::record::{Cell, CellCycle, CellVerdict, Clock, Expectation, Matrix, on_or_off};
use crate::render::figures::{attempts_in_words, dash, optional_slope};

/// The whole section.
pub(super) fn section(matrix: &Matrix, clock: Clock) -> String {
    let largest = matrix
        .cells
        .iter()
        .flat_map(|cell| &cell.cycles)
        .map(|cycle| cycle.resume_ms);
    let latency = ValueAxis::covering(largest.fold(0.0, f64::max));
    let most = matrix.cells.iter().map(|cell| cell.attempts_max).max();
    // At least ten, so that one attempt in each cycle is drawn near the bottom.
    let attempts = ValueAxis::covering_counts(most.unwrap_or(0).max(10));
    let scales = Scales { latency, attempts };
    let mut cells: Vec<&Cell> = matrix.cells.iter().collect();
    // One row of three port policies for each guest and switch of eviction.
    cells.sort_by_key(|cell| {
        let key = cell.key;
        (key.guest, key.eviction, key.monitor_first, key.port_policy)
    });
    let cards: String = cells
        .iter()
        .map(|cell| card(cell, &scales, clock))
        .collect();
    let class = match (matrix.as_expected(), matrix.includes_the_bug()) {
        (true, true) => "holds",
        (true, false) => "undecided",
        (false, _) => "broken",
    };
    let result = sentence(matrix.in_words());
    format!(
        r#"<section class="matrix" aria-labelledby="matrix"><h2 id="matrix">Each fix switched off on its own</h2><p class="verdict-line {class}">{result}.</p><p class="note">The bug: each cycle leaks a socket, and each leaked socket costs later resumes one more attempt. The cells show resume latency and readiness attempts over {} cycles in each cell, all on the same scales. The two figures are the medians of the first and of the last tenth of the cycles.</p><ul class="legend"><li><i class="key line latency"></i>resume, 0 to {} {}</li><li><i class="key line attempts"></i>attempts, 0 to {}</li></ul><ul class="cells">{cards}</ul>{}</section>"#,
        count(matrix.cycles_per_cell),
        ms(scales.latency.top()),
        clock.unit(),
        ms(scales.attempts.top()).replace(".0", ""),
        figures(&cells, clock),
    )
}

/// The axes that all cells share, so that they can be compared.
struct Scales {
    latency: ValueAxis,
    attempts: ValueAxis,
}

fn card(cell: &Cell, scales: &Scales, clock: Clock) -> String {
    let class = match (cell.as_expected(), cell.verdict) {
        (false, _) => "unexpected",
        (true, CellVerdict::Rising) => "rising",
        (true, CellVerdict::Flat | CellVerdict::Undecided) => "calm",
    };
    let (eviction, first) = (on_or_off(cell.key.eviction), cell.key.first_connection());
    format!(
        r#"<li class="cell {class}"><h3>{} guest, {} ports</h3><p>eviction {eviction}, {first} first</p><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{}"><path class="base" d="M0 1000H1000"/><path class="attempts-series" d="{}"/><path class="series" d="{}"/></svg><p class="ends"><b>{} &rarr; {}</b> <span>at most {} {}</span></p><p class="chip">{}</p></li>"#,
        cell.key.guest.name(),
        cell.key.port_policy.name(),
        Text(&format!("{}: {}", cell.key, cell.verdict.name())),
        line(cell, |cycle| scales.attempts.y(f64::from(cycle.attempts))),
        line(cell, |cycle| scales.latency.y(cycle.resume_ms)),
        optional(cell.resume_p50_first_decile_ms, clock),
        optional(cell.resume_p50_last_decile_ms, clock),
        count(cell.attempts_max),
        if cell.attempts_max == 1 {
            "attempt"
        } else {
            "attempts"
        },
        expectation(cell),
    )
}

fn line(cell: &Cell, y: impl Fn(&CellCycle) -> f64) -> String {
    let mut path = String::new();
    for (index, cycle) in cell.cycles.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        // The edge would cut a line on it in half.
        let y = y(cycle).clamp(12.0, SIDE - 12.0);
        // Writing to a string cannot fail.
        let _ = write!(path, "{command}{:.1} {y:.1}", x(index, cell.cycles.len()));
    }
    path
}

fn expectation(cell: &Cell) -> String {
    let verdict = cell.verdict.name();
    match (cell.expected, cell.mismatch()) {
        (_, Some(mismatch)) => format!("{verdict}, but {mismatch}"),
        (Expectation::Either, None) => format!("{verdict}, either is allowed"),
        (Expectation::Flat | Expectation::Rising, None) => format!("{verdict}, as expected"),
    }
}

fn figures(cells: &[&Cell], clock: Clock) -> String {
    let slope = format!("slope, {} per cycle", clock.unit());
    let header = [
        "cell",
        "p50 first tenth",
        "p50 last tenth",
        &slope,
        "95 % interval",
        "attempts per cycle",
        "attempts",
        "vsock sockets leaked",
        "verdict",
    ];
    let rows = cells.iter().map(|cell| {
        vec![
            cell.key.to_string(),
            optional(cell.resume_p50_first_decile_ms, clock),
            optional(cell.resume_p50_last_decile_ms, clock),
            optional_slope(cell.flatness.slope_ms_per_cycle),
            cell.flatness
                .ci95
                .map_or_else(dash, |[low, high]| format!("{low:+.3} to {high:+.3}")),
            cell.attempts_per_cycle
                .map_or_else(dash, |slope| format!("{slope:+.2}")),
            attempts_in_words(cell),
            cell.vsocks_leaked.map_or_else(dash, count),
            expectation(cell),
        ]
    });
    table("Figures of every cell", &header, rows)
}

fn optional(value: Option<f64>, clock: Clock) -> String {
    value.map_or_else(dash, |value| format!("{} {}", ms(value), clock.unit()))
}
