//! The trend: how much latency rises from cycle to cycle, after the warm-up.
//!
//! A guest settles in its first cycles: its allocators spread what they hold over more pages, and
//! each page that a resume touches costs a fault. The first tenth of the run is therefore left out. A
//! rise that ends within it is seen by the other rules only, whose bounds are wider.

use super::{BOUND_CYCLES, Series, compared};
use crate::judge::looks::Chances;
use crate::judge::words::percent_range;
use crate::numbers::three_digits;
use crate::record::{RiseBound, Rule, Unit};
use crate::statistics::{
    BLOCKS, Estimate, Interval, as_float, drift, means, normal_upper, ranges, ranked,
};

/// The largest rise that counts as flat, in percent of the median per 300 cycles.
pub(super) const RISE_BOUND_PERCENT: f64 = 5.0;

/// The blocks at the start of a run that are left out: a tenth of them.
const WARM_UP_BLOCKS: usize = BLOCKS / 10;

/// The lower end of another run's interval may be farther from the middle than that of this one. By
/// simulation, nine of ten runs are found with this factor.
const LOWER_END_VARIES: f64 = 1.5;

/// The trend of a run.
pub(crate) struct Trend {
    /// Rise per cycle.
    pub(crate) slope_ms_per_cycle: f64,
    /// Its 95 % interval.
    pub(crate) ci95: [f64; 2],
    /// How many cycles at the start it leaves out.
    pub(crate) warm_up: usize,
    /// The rise over the run at that slope, the warm-up included, in percent.
    pub(crate) rise: Interval,
    /// The smallest rise over the run, in percent, that would be found in nine of ten.
    pub(crate) detectable: f64,
    /// What the rise is compared with.
    pub(crate) bound: RiseBound,
    /// How far the upper end is from the middle, in percent, and how far the middle scatters in 99
    /// of 100.
    pub(crate) width: f64,
}

/// The trend of `series`; `None` if it is too short.
///
/// The slope is that of Theil and Sen, and its noise is judged by scores of ranks: see
/// `statistics::ranks`. How correlated the noise is, and whether it wanders, is estimated along with
/// the slope: see `statistics::local_level`.
pub(crate) fn trend(series: &Series, chances: Chances) -> Option<Trend> {
    let blocks = || ranges(series.count(), BLOCKS).skip(WARM_UP_BLOCKS);
    let warm_up = blocks().next()?.start;
    let settled = series.values.get(warm_up..)?;
    let ranked = ranked(settled)?;
    let levels = means(
        &ranked.scores,
        blocks().map(|block| block.start - warm_up..block.end - warm_up),
    );
    let down: Vec<usize> = series
        .down()
        .iter()
        .filter_map(|after_block| after_block.checked_sub(WARM_UP_BLOCKS))
        .collect();
    let correction = drift(&levels, &down)?;
    let count = as_float(series.count());
    let rise_of = |slope: f64| series.percent(slope * count);
    let point = |probability| ranked.slope + correction.point(probability);
    let interval = |estimate: &Estimate, below, above| {
        let found = estimate.interval(below, above);
        [found.lower, found.middle, found.upper].map(|end| ranked.slope + end)
    };
    let [lower, middle, upper] = interval(&correction, chances.below, chances.above);
    let ninth = middle - point(0.1);
    let bound = RISE_BOUND_PERCENT * series.spans();
    let in_10000 = bound * 10_000.0 / count;
    // The tenth of a normal distribution, stretched to its hundredth.
    let hundredth = ninth * normal_upper(0.01) / normal_upper(0.1);
    Some(Trend {
        slope_ms_per_cycle: middle,
        ci95: [point(0.025), point(0.975)],
        warm_up,
        rise: Interval {
            lower: rise_of(lower),
            middle: rise_of(middle),
            upper: rise_of(upper),
        },
        detectable: bound + LOWER_END_VARIES * rise_of(middle - lower) + rise_of(ninth),
        bound: RiseBound {
            percent: bound,
            ms: bound * series.typical / 100.0,
            percent_in_10000_cycles: in_10000,
            ms_in_10000_cycles: in_10000 * series.typical / 100.0,
        },
        width: rise_of(upper - middle) + rise_of(hundredth),
    })
}

impl Trend {
    /// The rule on it, with durations in `unit`.
    pub(crate) fn rule(&self, count: usize, unit: &str) -> Rule {
        let Interval {
            lower,
            middle,
            upper,
        } = self.rise;
        let bound = self.bound.percent;
        Rule {
            series: "resume".to_owned(),
            name: "trend".to_owned(),
            requirement: requirement(),
            found: format!(
                "resumes rise by {} of the median over {count} cycles; at most {bound:.1} % \
                 ({} {unit}) is flat, and {:.1} % would have been found in 9 of 10",
                percent_range(middle, lower, upper),
                three_digits(self.bound.ms),
                self.detectable,
            ),
            value: middle,
            lower,
            upper,
            bound,
            unit: Unit::Percent,
            outcome: compared(lower, upper, bound),
        }
    }
}

pub(super) fn requirement() -> String {
    format!(
        "resume latency rises by at most {RISE_BOUND_PERCENT} % of its median per {BOUND_CYCLES} \
         cycles (over all of a shorter run), the first tenth of the run left out as warm-up"
    )
}
