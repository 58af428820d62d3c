//! Quantiles, the Theil-Sen slope with its confidence interval, and medians of deciles.
//!
//! Pure functions on slices of finite numbers. The callers ensure that numbers are finite: they
//! check them when they are measured and when they are loaded.

mod blocks;
mod distribution;
mod local_level;
mod ranks;

pub(crate) use blocks::{BLOCKS, Level, locations, means, quantiles, ranges};
pub(crate) use distribution::normal_upper;
pub(crate) use local_level::{Estimate, Interval, Step, drift, steps};
pub(crate) use ranks::ranked;

/// The median of a normal value's absolute distance from its mean, in standard deviations.
const NORMAL_MAD: f64 = 0.674_489_750_196_081_7;

/// Quantile of the standard normal distribution that leaves 2.5 % on either side.
pub const TWO_SIDED_95: f64 = 1.959_963_984_540_054;

/// The figures that tables show of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantiles {
    /// Median.
    pub p50: f64,
    /// 90 % of the values are not above it.
    pub p90: f64,
    /// 99 % of the values are not above it.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Quantiles {
    /// The quantiles of `values` in any order; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self {
            p50: quantile_of_sorted(&sorted, 0.5)?,
            p90: quantile_of_sorted(&sorted, 0.9)?,
            p99: quantile_of_sorted(&sorted, 0.99)?,
            max: *sorted.last()?,
        })
    }
}

/// The `q`-quantile, interpolated linearly between neighbours (Hyndman and Fan's type 7, the
/// default of R and numpy).
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    quantile_of_sorted(&sorted(values), q)
}

/// The median.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// How unlikely it is that the median of a distribution is below [`median_at_least`].
const BELOW_BOUND: f64 = 1e-3;

/// The lower bound of the median of the distribution that `values` are from, by order statistics: the
/// largest value that is above that median in at most one of a thousand such samples. It assumes
/// nothing about the distribution, which may have two modes. Of fewer than ten values the least is
/// taken, whose chance is larger: 1 in 2ⁿ.
pub fn median_at_least(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let count = as_float(sorted.len());
    // The value with `below` others under it exceeds the median if at most `below` values fall
    // under the median: a sum of binomial terms, of which each follows from the one before.
    // In logarithms, since the first is 2 to the power of minus the count.
    let mut term = -count * std::f64::consts::LN_2;
    let mut chance = 0.0;
    let mut bound = *sorted.first()?;
    for (below, value) in sorted.iter().enumerate() {
        chance += term.exp();
        if chance > BELOW_BOUND {
            break;
        }
        bound = *value;
        term += ((count - as_float(below)) / (as_float(below) + 1.0)).ln();
    }
    Some(bound)
}

/// A straight line through a series, robust against outliers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slope {
    /// Median of the slopes between all pairs of points.
    pub slope: f64,
    /// Chosen so that the line passes through the medians of both coordinates.
    pub intercept: f64,
    /// Lower and upper end of the slope's confidence interval.
    pub interval: (f64, f64),
}

/// The Theil-Sen slope of `ys` over `xs` and its confidence interval.
///
/// The interval is that of Sen (1968), "Estimates of the regression coefficient based on
/// Kendall's tau", section 6, in the form with ties of Gilbert (1987), "Statistical methods for
/// environmental pollution monitoring", section 16.5: among the sorted slopes, those at the ranks
/// that Kendall's S would have at plus and minus `normal_quantile` standard deviations. It assumes
/// that the noise of neighbouring values is independent. Ranks are rounded as scipy does.
///
/// `None` if there are fewer than two distinct `xs`. Time and memory grow with n²/2.
pub fn theil_sen(xs: &[f64], ys: &[f64], normal_quantile: f64) -> Option<Slope> {
    let mut slopes = pairwise_slopes(xs, ys);
    if slopes.is_empty() {
        return None;
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let slope = quantile_of_sorted(&slopes, 0.5)?;
    let intercept = median(ys)? - slope * median(xs)?;

    let deviation = kendall_variance(xs, ys).max(0.0).sqrt();
    let count = as_float(slopes.len());
    let lower = rank(((count - normal_quantile * deviation) / 2.0).round_ties_even() - 1.0);
    let upper = rank(((count + normal_quantile * deviation) / 2.0).round_ties_even());
    Some(Slope {
        slope,
        intercept,
        interval: (slopes[lower], slopes[upper.min(slopes.len() - 1)]),
    })
}

/// [`theil_sen`] with 95 % confidence, over the values of cycles 1, 2, 3…
pub fn theil_sen_by_cycle(values: &[f64]) -> Option<Slope> {
    let cycles: Vec<f64> = (1..=values.len()).map(as_float).collect();
    theil_sen(&cycles, values, TWO_SIDED_95)
}

/// Medians of the first and of the last tenth of a series, at least one value each.
pub fn decile_medians(values: &[f64]) -> Option<(f64, f64)> {
    let length = decile_length(values.len());
    let first = values.get(..length)?;
    let last = values.get(values.len() - length..)?;
    Some((median(first)?, median(last)?))
}

/// How many values a tenth of `count` is, rounded up.
pub(crate) fn decile_length(count: usize) -> usize {
    count.div_ceil(10)
}

/// The standard deviation of the noise in a series, whatever its trend or steps. It is derived from
/// the median of the differences between neighbours, which few outliers or steps do not affect.
///
/// For normal noise the median absolute difference is 0.6745 · √2 standard deviations.
pub fn scatter(values: &[f64]) -> Option<f64> {
    let differences: Vec<f64> = values
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).abs())
        .collect();
    Some(median(&differences)? / (NORMAL_MAD * std::f64::consts::SQRT_2))
}

fn pairwise_slopes(xs: &[f64], ys: &[f64]) -> Vec<f64> {
    let points: Vec<(f64, f64)> = xs.iter().copied().zip(ys.iter().copied()).collect();
    let mut slopes = Vec::with_capacity(points.len() * points.len().saturating_sub(1) / 2);
    for (index, &(x, y)) in points.iter().enumerate() {
        for &(later_x, later_y) in &points[index + 1..] {
            if later_x != x {
                slopes.push((later_y - y) / (later_x - x));
            }
        }
    }
    slopes
}

/// Variance of Kendall's S under no trend, corrected for ties (Sen 1968, equation 2.6).
fn kendall_variance(xs: &[f64], ys: &[f64]) -> f64 {
    let term = |n: f64| n * (n - 1.0) * (2.0 * n + 5.0);
    let tied = |values: &[f64]| -> f64 {
        sorted(values)
            .chunk_by(|a, b| a == b)
            .map(|group| term(as_float(group.len())))
            .sum()
    };
    (term(as_float(ys.len())) - tied(xs) - tied(ys)) / 18.0
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

fn quantile_of_sorted(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = q.clamp(0.0, 1.0) * as_float(last);
    let below = rank(position.floor());
    let low = *sorted.get(below)?;
    let high = *sorted.get((below + 1).min(last))?;
    Some(low + (high - low) * (position - position.floor()))
}

/// A whole number from arithmetic as an index; numbers below zero become zero.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "callers pass whole numbers within the length of a slice"
)]
fn rank(whole: f64) -> usize {
    whole.max(0.0) as usize
}

/// Counts are far below 2^53, up to which floats hold every integer.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts of cycles and of their pairs"
)]
pub(crate) fn as_float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-9,
            "found {found}, expected {expected}"
        );
    }

    /// Ranks from tables of the sign test: of 30 values the 7th, of 80 the 26th, at 0.1 % one-sided.
    #[test]
    fn the_lower_bound_of_a_median_is_the_order_statistic_of_the_sign_test() {
        for (count, rank) in [(1, 1), (5, 1), (10, 1), (15, 2), (30, 7), (80, 26)] {
            let values: Vec<f64> = (1..=count).map(f64::from).collect();
            assert_eq!(median_at_least(&values), Some(f64::from(rank)), "{count}");
        }
        let values: Vec<f64> = (1..=20_000).map(f64::from).collect();
        let found = median_at_least(&values).unwrap();
        // The normal approximation: half of the values, less 3.09 times half of the root.
        assert!((found - 9781.5).abs() < 3.0, "{found}");
        assert_eq!(median_at_least(&[]), None);
    }

    /// Sen (1968), section 6: seven points, 93 % confidence; scipy tests itself against the same
    /// example (`scipy/stats/tests/test_mstats_basic.py`): slope 4, interval 3.71 to 4.38.
    #[test]
    fn the_example_of_sen_1968_is_reproduced() {
        let xs = [1.0, 2.0, 3.0, 4.0, 10.0, 12.0, 18.0];
        let ys = [9.0, 15.0, 19.0, 20.0, 45.0, 55.0, 78.0];
        let found = theil_sen(&xs, &ys, 1.811_910_672_952_597_3).unwrap();
        close(found.slope, 4.0);
        close(found.intercept, 4.0);
        close(found.interval.0, 26.0 / 7.0);
        close(found.interval.1, 4.375);
    }

    /// `scipy.stats.theilslopes(y, range(1, 21), 0.95)` of scipy 1.17.1, with many ties.
    #[test]
    fn a_series_with_ties_agrees_with_scipy() {
        let ys = [
            10.0, 12.0, 12.0, 11.0, 12.0, 13.0, 13.0, 13.0, 15.0, 14.0, 14.0, 15.0, 15.0, 16.0,
            12.0, 17.0, 17.0, 18.0, 15.0, 19.0,
        ];
        let found = theil_sen_by_cycle(&ys).unwrap();
        close(found.slope, 0.4);
        close(found.intercept, 9.8);
        close(found.interval.0, 0.3);
        close(found.interval.1, 0.5);
    }

    /// `numpy.quantile` of numpy 2, default method.
    #[test]
    fn quantiles_agree_with_numpy() {
        let found = Quantiles::of(&[3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]).unwrap();
        close(found.p50, 3.5);
        close(found.p90, 6.9);
        close(found.p99, 8.79);
        close(found.max, 9.0);
    }

    #[test]
    fn three_points_have_half_a_unit_of_slope() {
        // From scipy's own tests: theilslopes([0, 1, 1]).
        let found = theil_sen(&[0.0, 1.0, 2.0], &[0.0, 1.0, 1.0], TWO_SIDED_95).unwrap();
        close(found.slope, 0.5);
        close(found.intercept, 0.5);
    }

    #[test]
    fn a_constant_series_has_no_slope_and_no_interval_around_it() {
        let found = theil_sen_by_cycle(&[5.0; 30]).unwrap();
        assert_eq!((found.slope, found.interval), (0.0, (0.0, 0.0)));
    }

    #[test]
    fn an_empty_series_has_no_statistics() {
        assert_eq!(Quantiles::of(&[]), None);
        assert_eq!(theil_sen_by_cycle(&[1.0]), None);
        assert_eq!(decile_medians(&[]), None);
        assert_eq!(scatter(&[1.0]), None);
    }

    #[test]
    fn deciles_of_a_short_series_still_have_a_value() {
        assert_eq!(decile_medians(&[1.0, 5.0, 9.0]), Some((1.0, 9.0)));
        let long: Vec<f64> = (0..60).map(as_float).collect();
        assert_eq!(decile_medians(&long), Some((2.5, 56.5)));
    }

    #[test]
    fn scatter_ignores_a_trend_and_a_step() {
        let noise = [0.0, 1.0, -1.0, 0.5, -0.5, 1.0, 0.0, -1.0, 1.0, 0.0];
        let plain: Vec<f64> = noise.iter().cycle().take(100).copied().collect();
        let stepped: Vec<f64> = plain
            .iter()
            .enumerate()
            .map(|(i, v)| if i < 50 { *v } else { v + 1000.0 })
            .collect();
        close(scatter(&plain).unwrap(), scatter(&stepped).unwrap());
    }

    proptest! {
        #[test]
        fn an_exact_line_is_found_exactly(slope in -1e3..1e3f64, start in 0.0..1e6f64, n in 2usize..80) {
            let ys: Vec<f64> = (1..=n).map(|i| start + slope * as_float(i)).collect();
            let found = theil_sen_by_cycle(&ys).unwrap();
            prop_assert!((found.slope - slope).abs() < 1e-6);
            prop_assert!(found.interval.0 <= found.slope && found.slope <= found.interval.1);
        }

        #[test]
        fn quantiles_are_ordered_and_within_the_series(values in prop::collection::vec(0.0..1e9f64, 1..60)) {
            let q = Quantiles::of(&values).unwrap();
            prop_assert!(q.p50 <= q.p90 && q.p90 <= q.p99 && q.p99 <= q.max);
            prop_assert!(values.contains(&q.max));
        }

        #[test]
        fn figures_of_usable_durations_are_finite(values in prop::collection::vec(0.0..=1e9f64, 2..60)) {
            let found = theil_sen_by_cycle(&values).unwrap();
            prop_assert!(found.slope.is_finite() && found.intercept.is_finite());
            prop_assert!(found.interval.0.is_finite() && found.interval.1.is_finite());
            prop_assert!(scatter(&values).unwrap().is_finite());
        }
    }
}
