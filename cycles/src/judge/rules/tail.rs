//! The tail: slow resumes that become more frequent, or slower.
//!
//! A resume is slow if it takes a quarter longer than the median of the cycles around it, and very
//! slow at twice and five times that median. If slow ones are as frequent at the end as at the
//! beginning, their mean position is the middle of the run, but for the scatter of so many uniform
//! positions. Slow resumes side by side scatter as one: a burst of load makes many.

use super::{BOUND_CYCLES, Series};
use crate::judge::looks::Chances;
use crate::numbers::three_digits;
use crate::record::{Outcome, Rule, Unit};
use crate::statistics::{as_float, median, normal_upper, ranges};

/// How many times the median around it a slow resume takes, and slower ones.
const SLOW: [f64; 3] = [1.25, 2.0, 5.0];

/// How much more frequent slow resumes may be in the second half of 300 cycles or more, in points of
/// the percentage.
const SHARE_BOUND_POINTS: f64 = 7.0;

/// The bound for a run of `count` cycles. A share is known to the square root of their number, so
/// that of a shorter run has more points: 22 of 30 cycles.
fn share_bound(count: usize) -> f64 {
    SHARE_BOUND_POINTS * (BOUND_CYCLES / as_float(count)).sqrt().max(1.0)
}

/// The growth of the share of slow resumes between the halves.
pub(super) fn rule(series: &Series, chances: Chances) -> Rule {
    let each = chances.of_each(SLOW.len());
    let mut slower = SLOW.iter().copied();
    let grows = slower.find(|slow| come_late(series, *slow, each));
    let slow = grows.unwrap_or(SLOW[0]);
    let [first, second] = halves(series, slow);
    let growth = second - first;
    let half = (as_float(series.count()) / 2.0).max(1.0);
    // One half of a resume each keeps the error of a share of zero above zero.
    let error = [first, second]
        .map(|share| {
            let share = (share * half + 0.5) / (half + 1.0);
            share * (1.0 - share) / half
        })
        .iter()
        .sum::<f64>()
        .sqrt();
    let reach = |tail: f64| 100.0 * error * normal_upper(tail);
    let (lower, upper) = (
        100.0 * growth - reach(chances.below),
        100.0 * growth + reach(chances.above),
    );
    let bound = share_bound(series.count());
    let outcome = if grows.is_some() {
        Outcome::Rising
    } else if upper <= bound {
        Outcome::Flat
    } else {
        Outcome::Undecided
    };
    Rule {
        series: "resume".to_owned(),
        name: "tail".to_owned(),
        requirement: requirement(),
        found: format!(
            "{} % of the resumes in the first half and {} % in the second take more than {slow} \
             times the median around them{}",
            three_digits(100.0 * first),
            three_digits(100.0 * second),
            if grows.is_some() {
                ", and they come later than chance would have it"
            } else {
                ""
            },
        ),
        value: 100.0 * growth,
        lower,
        upper,
        bound,
        unit: Unit::PercentagePoints,
        outcome,
    }
}

pub(super) fn requirement() -> String {
    format!(
        "slow resumes (more than {} times the median around them, also {} and {} times) become \
         neither certainly more frequent nor perhaps by {SHARE_BOUND_POINTS} points (times \
         the square root of {BOUND_CYCLES}/n in a run of n cycles, if that is shorter)",
        SLOW[0], SLOW[1], SLOW[2]
    )
}

/// Which resumes are slow, in order.
fn slow_ones(series: &Series, slow: f64) -> Vec<usize> {
    ranges(series.count(), series.wide_blocks())
        .filter_map(|range| {
            let values = series.values.get(range.clone())?;
            let limit = slow * median(values)?;
            Some(range.zip(values).filter(move |(_, value)| **value > limit))
        })
        .flatten()
        .map(|(index, _)| index)
        .collect()
}

/// Whether slow resumes come later than chance would have it: whether their mean position is that of
/// uniform ones. Neighbours scatter together, so that a burst counts as one. The tail of a mean of
/// uniform values is lighter than the normal one, so that few resumes prove nothing.
fn come_late(series: &Series, slow: f64, chances: Chances) -> bool {
    let all = slow_ones(series, slow);
    if all.is_empty() {
        return false;
    }
    let sum: f64 = all.iter().map(|index| as_float(*index) + 0.5).sum();
    let mean = sum / as_float(all.len()) / as_float(series.count());
    let bursts = all.chunk_by(|one, next| one + 1 == *next).count();
    (mean - 0.5) * (12.0 * as_float(bursts)).sqrt() > normal_upper(chances.below)
}

/// The shares of slow resumes in the two halves.
fn halves(series: &Series, slow: f64) -> [f64; 2] {
    let half = series.count() / 2;
    let all = slow_ones(series, slow);
    let first = all.iter().filter(|index| **index < half).count();
    [
        as_float(first) / as_float(half.max(1)),
        as_float(all.len() - first) / as_float((series.count() - half).max(1)),
    ]
}
