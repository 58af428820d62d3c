//! A subset: every third cycle rises, or some others do, while the median hardly moves.

use super::{BOUND_CYCLES, Series, compared};
use crate::judge::looks::Chances;
use crate::judge::words::percent_range;
use crate::record::{Rule, Unit};
use crate::statistics::{Interval, Level, as_float, drift, quantiles, ranked};

/// The quantile of each block that stands for the slower third: its lower end, which few outliers
/// do not move.
const SLOWER: f64 = 0.75;

/// The largest rise of the slower cycles that counts as flat, in percent of the median per 300
/// cycles.
const SUBSET_BOUND_PERCENT: f64 = 25.0;

/// The trend of the slower cycles; `None` if there are too few blocks to have one.
pub(super) fn rule(series: &Series, chances: Chances) -> Option<Rule> {
    let levels = quantiles(&series.values, series.wide_blocks(), SLOWER);
    let count = as_float(series.count());
    let values: Vec<f64> = levels.iter().map(|level| level.value).collect();
    let ranked = ranked(&values)?;
    let blocks = as_float(levels.len());
    // The scores of the blocks have the blocks' places and sizes.
    let scores: Vec<Level> = levels
        .iter()
        .zip(&ranked.scores)
        .map(|(level, score)| Level {
            value: *score,
            ..*level
        })
        .collect();
    let correction = drift(&scores, &[])?.interval(chances.below, chances.above);
    let [lower, middle, upper] = [correction.lower, correction.middle, correction.upper]
        .map(|correction| series.percent(ranked.slope * blocks + correction * count));
    let interval = Interval {
        lower,
        middle,
        upper,
    };
    let bound = SUBSET_BOUND_PERCENT * series.spans();
    Some(Rule {
        series: "resume".to_owned(),
        name: "subset".to_owned(),
        requirement: requirement(),
        found: format!(
            "the slower third of the resumes rises by {} of the median",
            percent_range(interval.middle, interval.lower, interval.upper),
        ),
        value: interval.middle,
        lower: interval.lower,
        upper: interval.upper,
        bound,
        unit: Unit::Percent,
        outcome: compared(interval.lower, interval.upper, bound),
    })
}

pub(super) fn requirement() -> String {
    format!(
        "the slower third of the resumes rises by at most {SUBSET_BOUND_PERCENT} % of the median \
         per {BOUND_CYCLES} cycles (over all of a shorter run)"
    )
}
