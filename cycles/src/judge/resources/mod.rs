//! Whatever could grow without showing in latency: counts of things, and sizes.
//!
//! Such series are no noise around a line. They stand still, oscillate, jump by a whole page or
//! arena, and fall back; a leak is what they never fall back from. So each is cut into ten windows,
//! and the smallest value of a window is its *floor*: what is in use however idle the moment. The
//! first window is warm-up and left out. The rise of the floor from the second window to the last is
//! known up to the largest jump between two windows, which may be due at any moment, and the largest
//! fall, which shows how much the floor moves without a leak. That is the interval that is compared
//! with the bound. It needs no distribution, and no allowance for many series: a floor that goes
//! nowhere is never rising, however it oscillates.

mod known;

use std::collections::BTreeMap;

use super::rules::{BOUND_CYCLES, compared, spans};
use crate::numbers::three_digits;
use crate::record::{Cycle, Outcome, Rule, Unit};
use crate::statistics::ranges;
use known::Allowance;

pub(crate) use known::in_words as resource_in_words;

/// Into how many windows a series is cut.
const WINDOWS: usize = 10;

/// Judges each resource that `cycles` record in at least `fewest` cycles.
pub(super) fn rules(cycles: &[Cycle], fewest: usize) -> Vec<Rule> {
    let mut series: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for cycle in cycles {
        for (name, value) in cycle.resources.iter() {
            series.entry(name).or_default().push(as_number(value));
        }
    }
    series
        .into_iter()
        .filter(|(_, values)| values.len() >= fewest)
        .filter_map(|(name, values)| rule(name, &values))
        .collect()
}

/// Sizes beyond 2^53 bytes lose digits that nobody misses.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn as_number(value: u64) -> f64 {
    value as f64
}

fn rule(name: &str, values: &[f64]) -> Option<Rule> {
    let floor = Floor::of(values)?;
    let allowance = known::allowance(name);
    let (unit, per_300, limit) = match allowance {
        Allowance::Count => (Unit::Count, 1.0, None),
        Allowance::Bytes { per_cycle } => (Unit::Bytes, per_cycle * BOUND_CYCLES, None),
        Allowance::Designed { per_cycle, limit } => {
            (Unit::Bytes, per_cycle * BOUND_CYCLES, Some(limit))
        }
    };
    let bound = per_300 * spans(values.len());
    let (lower, upper) = (floor.rise - floor.doubt, floor.rise + floor.doubt);
    let largest = values.iter().copied().fold(0.0, f64::max);
    let exceeded = limit.filter(|limit| largest > *limit);
    let amount = |value: f64| amount(value, unit);
    let in_a_short_run = format!(
        "({} over all of a run of fewer than {BOUND_CYCLES} cycles)",
        amount(per_300)
    );
    let words = known::in_words(name);
    Some(Rule {
        series: name.to_owned(),
        name: "growth".to_owned(),
        requirement: match allowance {
            Allowance::Count => format!("{words}: less than one more in {BOUND_CYCLES} cycles"),
            Allowance::Bytes { per_cycle } => format!(
                "{words}: at most {} more per cycle {in_a_short_run}",
                amount(per_cycle),
            ),
            Allowance::Designed { per_cycle, limit } => format!(
                "{words}: by design at most {} more per cycle {in_a_short_run} and {} in all",
                amount(per_cycle),
                amount(limit)
            ),
        },
        found: match exceeded {
            Some(limit) => format!(
                "{words} reaches {}, more than its limit of {}",
                amount(largest),
                amount(limit)
            ),
            None => format!(
                "{words} goes from {} to {}: {} more ({} to {})",
                amount(floor.first),
                amount(floor.last),
                amount(floor.rise),
                amount(lower),
                amount(upper),
            ),
        },
        value: floor.rise,
        lower,
        upper,
        bound,
        unit,
        outcome: if exceeded.is_some() {
            Outcome::Rising
        } else {
            compared(lower, upper, bound)
        },
    })
}

/// Where the floor of a series goes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Floor {
    first: f64,
    last: f64,
    rise: f64,
    /// The largest jump between two windows and the largest fall.
    doubt: f64,
}

impl Floor {
    /// `None` if there are fewer values than windows.
    fn of(values: &[f64]) -> Option<Self> {
        if values.len() < WINDOWS {
            return None;
        }
        let floors: Vec<f64> = ranges(values.len(), WINDOWS)
            .skip(1)
            .filter_map(|range| values.get(range)?.iter().copied().reduce(f64::min))
            .collect();
        let (first, last) = (*floors.first()?, *floors.last()?);
        let jump = floors.windows(2).map(|pair| pair[1] - pair[0]);
        let jump = jump.fold(0.0, f64::max);
        let (_, fall) = floors
            .iter()
            .fold((first, 0.0f64), |(highest, fall), floor| {
                (floor.max(highest), fall.max(highest - floor))
            });
        Some(Self {
            first,
            last,
            rise: last - first,
            doubt: jump + fall,
        })
    }
}

/// An amount for people: a count, or bytes with a binary unit.
pub(crate) fn amount(value: f64, unit: Unit) -> String {
    if unit != Unit::Bytes {
        return format!("{value:.0}");
    }
    let sign = if value < 0.0 { "-" } else { "" };
    let size = value.abs();
    for (name, scale) in [("GiB", 1u32 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if size >= f64::from(scale) {
            return format!("{sign}{} {name}", three_digits(size / f64::from(scale)));
        }
    }
    format!("{sign}{size:.0} B")
}

#[cfg(test)]
mod tests;
