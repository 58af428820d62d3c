//! The rules on resume latency. Each compares an interval with a bound; see `verdict` for how they
//! act together.
//!
//! - `trend`: a slow, steady rise.
//! - `step`: a sudden rise that stays, wherever it is.
//! - `subset`: a rise of only some of the cycles.
//! - `tail`: slow resumes that become more frequent, or slower.

mod series;
mod step;
mod subset;
mod tail;
mod trend;

pub(super) use series::Series;
pub(super) use trend::{Trend, trend};

use super::looks::Chances;
use crate::record::{Outcome, Rule};
use crate::statistics::as_float;

/// The cycles over which bounds on rates are stated.
pub(super) const BOUND_CYCLES: f64 = 300.0;

/// How many times the growth that is allowed per 300 cycles a run of `count` may show.
///
/// A shorter run may show the whole of it: what a guest settles with in its first cycles, and how well
/// so few cycles are known, does not shrink with them. The verdict says what it then excludes.
pub(super) fn spans(count: usize) -> f64 {
    (as_float(count) / BOUND_CYCLES).max(1.0)
}

/// All rules but the trend, applied to `series`.
pub(super) fn others(series: &Series, chances: Chances) -> Vec<Rule> {
    [
        Some(step::rule(series, chances)),
        subset::rule(series, chances),
        Some(tail::rule(series, chances)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What must be true, for people: every rule in the order in which they are applied.
pub(super) fn requirements() -> [String; 4] {
    [
        trend::requirement(),
        step::requirement(),
        subset::requirement(),
        tail::requirement(),
    ]
}

/// The outcome of an interval against a bound.
pub(super) fn compared(lower: f64, upper: f64, bound: f64) -> Outcome {
    if lower >= bound {
        Outcome::Rising
    } else if upper <= bound {
        Outcome::Flat
    } else {
        Outcome::Undecided
    }
}
