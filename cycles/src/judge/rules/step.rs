//! A step: a sudden rise that stays until the end of the run, wherever it is.

use super::series::SMALLEST_MS;
use super::{Series, compared};
use crate::judge::looks::Chances;
use crate::judge::words::percent_range;
use crate::record::{Rule, Unit};
use crate::statistics::{Step, as_float};

/// The largest lasting step that counts as flat, in percent of the level before it.
const STEP_BOUND_PERCENT: f64 = 25.0;

/// The largest rise between two blocks, apart from what later steps take back.
pub(super) fn rule(series: &Series, chances: Chances) -> Rule {
    let each = chances.of_each(series.steps.len());
    let later = |step: &Step| -> f64 {
        let later = series
            .steps
            .iter()
            .filter(|one| one.is_certain && one.after_block > step.after_block);
        later.map(|one| one.change.point(0.5)).sum()
    };
    let (mut lower, mut upper, mut value, mut place) = (f64::NEG_INFINITY, 0.0f64, 0.0f64, 0);
    for step in &series.steps {
        let interval = step.change.interval(each.below, each.above);
        let after = later(step);
        // A level of zero has nothing that a step could be compared with but the median.
        let before = series.level_before(step.after_block);
        let before = if before >= SMALLEST_MS {
            before
        } else {
            series.typical
        };
        let percent = |change: f64| 100.0 * (change + after) / before;
        lower = lower.max(percent(interval.lower));
        upper = upper.max(percent(interval.upper));
        if percent(interval.middle) > value {
            value = percent(interval.middle);
            place = step.after_block;
        }
    }
    let blocks = as_float(series.steps.len() + 1);
    let cycle = as_float(place + 1) * as_float(series.count()) / blocks;
    Rule {
        series: "resume".to_owned(),
        name: "step".to_owned(),
        requirement: requirement(),
        found: format!(
            "the largest lasting step is {} of the level before it, about after cycle {cycle:.0}",
            percent_range(value, lower, upper),
        ),
        value,
        lower,
        upper,
        bound: STEP_BOUND_PERCENT,
        unit: Unit::Percent,
        outcome: compared(lower, upper, STEP_BOUND_PERCENT),
    }
}

pub(super) fn requirement() -> String {
    format!(
        "no step that stays until the end, wherever it is, raises resume latency by more than \
         {STEP_BOUND_PERCENT} %"
    )
}
