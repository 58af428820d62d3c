//! The slope of a series by ranks, and its noise as ranks see it.
//!
//! Latencies come in steps of timer ticks: most are close to one value, and some are a whole tick
//! off. A mean takes those for noise, ranks do not: on recorded runs the Theil-Sen slope scatters a
//! third as much as least squares, and hardly more where the noise is normal.

use super::{as_float, median};

/// A series as a line and scores.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ranked {
    /// The Theil-Sen slope per value: the median of the slopes between all pairs.
    pub(crate) slope: f64,
    /// What is left of each value without the slope, as a score in the unit of the values: the
    /// slope that least squares finds in these is, for a long series, the error of `slope`.
    pub(crate) scores: Vec<f64>,
}

/// The slope and the Wilcoxon scores of `values`; `None` below two. Time grows with n·log n.
///
/// Scores are √12·τ·(rank/(n+1) − ½), where τ is the scale that makes them linear in the
/// estimate: Hettmansperger and McKean (2011), "Robust nonparametric statistical methods", theorem
/// 3.5.2.
pub(crate) fn ranked(values: &[f64]) -> Option<Ranked> {
    let slope = median_slope(values)?;
    let left: Vec<f64> = values
        .iter()
        .enumerate()
        .map(|(index, value)| value - slope * as_float(index))
        .collect();
    let mut order: Vec<usize> = (0..left.len()).collect();
    order.sort_by(|a, b| left[*a].total_cmp(&left[*b]));
    let sorted: Vec<f64> = order.iter().map(|index| left[*index]).collect();
    let scale = 12f64.sqrt() * wilcoxon_scale(&sorted);
    let ranks = as_float(left.len() + 1);
    let mut scores = vec![0.0; left.len()];
    let mut rank = 0;
    for ties in sorted.chunk_by(|a, b| a == b) {
        let middle = as_float(rank) + f64::midpoint(1.0, as_float(ties.len()));
        for index in order.iter().skip(rank).take(ties.len()) {
            scores[*index] = scale * (middle / ranks - 0.5);
        }
        rank += ties.len();
    }
    Some(Ranked { slope, scores })
}

/// The median of the slopes between all pairs, without making them: a slope is below it as long as
/// most pairs still rise when it is taken away.
fn median_slope(values: &[f64]) -> Option<f64> {
    let steepest = values
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).abs())
        .reduce(f64::max)?;
    let rise_below = |is_rising: fn(i64) -> bool| {
        super::distribution::bisect(-steepest, steepest, 9, |slope| {
            is_rising(rising_minus_falling(values, slope))
        })
    };
    // With ties there is a range of slopes in the middle, and the median is the middle of it.
    Some(f64::midpoint(
        rise_below(|balance| balance > 0),
        rise_below(|balance| balance >= 0),
    ))
}

/// Pairs that rise by more than `slope` minus those that rise by less: Kendall's S.
fn rising_minus_falling(values: &[f64], slope: f64) -> i64 {
    let mut left: Vec<f64> = values
        .iter()
        .enumerate()
        .map(|(index, value)| value - slope * as_float(index))
        .collect();
    let mut room = left.clone();
    sort_and_count(&mut left, &mut room)
}

/// Sorts `values` and returns how many pairs were in order minus how many were not. `room` is as
/// long.
fn sort_and_count(values: &mut [f64], room: &mut [f64]) -> i64 {
    if values.len() < 2 {
        return 0;
    }
    let half = values.len() / 2;
    let (first, second) = values.split_at_mut(half);
    let (first_room, second_room) = room.split_at_mut(half);
    let mut balance = sort_and_count(first, first_room) + sort_and_count(second, second_room);
    let (mut below, mut not_above) = (0, 0);
    for value in second.iter() {
        while first.get(below).is_some_and(|one| one < value) {
            below += 1;
        }
        while first.get(not_above).is_some_and(|one| one <= value) {
            not_above += 1;
        }
        balance += count(below) - count(first.len() - not_above);
    }
    let (mut left, mut right) = (0, 0);
    for slot in room.iter_mut() {
        let take_left = match (first.get(left), second.get(right)) {
            (Some(one), Some(other)) => one <= other,
            (one, _) => one.is_some(),
        };
        *slot = if take_left {
            left += 1;
            first[left - 1]
        } else {
            right += 1;
            second[right - 1]
        };
    }
    values.copy_from_slice(room);
    balance
}

fn count(pairs: usize) -> i64 {
    i64::try_from(pairs).unwrap_or(i64::MAX)
}

/// τ of the noise in `sorted`: 1/(√12·∫f²), where ∫f² is how densely pairs lie together, by the
/// estimate of Koul, Sievers and McKean (1987), "An estimator of the scale parameter for the rank
/// analysis of linear models under general score functions".
fn wilcoxon_scale(sorted: &[f64]) -> f64 {
    let (Some(smallest), Some(largest)) = (sorted.first(), sorted.last()) else {
        return 0.0;
    };
    let count = as_float(sorted.len());
    let all = count * (count - 1.0) / 2.0;
    let wide = super::distribution::bisect(0.0, largest - smallest, 6, |width| {
        as_float(pairs_within(sorted, width)) < 0.8 * all
    });
    let near = wide / count.sqrt();
    let share = as_float(pairs_within(sorted, near)) / all;
    if share > 0.0 {
        2.0 * near / (12f64.sqrt() * share)
    } else {
        // Fewer than some dozens of values: as if they were normal.
        let middle = median(sorted).unwrap_or(0.0);
        let distances: Vec<f64> = sorted.iter().map(|value| (value - middle).abs()).collect();
        median(&distances).unwrap_or(0.0) / super::NORMAL_MAD * (std::f64::consts::PI / 3.0).sqrt()
    }
}

/// How many pairs of `sorted` are not farther apart than `width`.
fn pairs_within(sorted: &[f64], width: f64) -> usize {
    let mut first = 0;
    let mut pairs = 0;
    for (index, value) in sorted.iter().enumerate() {
        while value - sorted[first] > width {
            first += 1;
        }
        pairs += index - first;
    }
    pairs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::theil_sen_by_cycle;
    use super::*;

    /// `scipy.stats.theilslopes` of scipy 1.17.1; the second series has many ties.
    #[test]
    fn the_slope_agrees_with_scipy() {
        let untied = [
            3.1, 4.7, 2.2, 6.0, 5.5, 7.9, 6.1, 8.8, 9.0, 7.2, 10.5, 11.9, 9.7, 12.2, 13.8, 12.9,
            15.1, 14.0, 16.6, 17.3, 15.9, 18.8, 19.4, 18.1, 20.0,
        ];
        let found = ranked(&untied).unwrap().slope;
        assert!((found - 0.705_131_578_947_368_4).abs() < 1e-7, "{found}");
        let tied = [
            10.0, 12.0, 12.0, 11.0, 12.0, 13.0, 13.0, 13.0, 15.0, 14.0, 14.0, 15.0, 15.0, 16.0,
            12.0, 17.0, 17.0, 18.0, 15.0, 19.0,
        ];
        let found = ranked(&tied).unwrap().slope;
        assert!((found - 0.4).abs() < 1e-7, "{found}");
    }

    /// For normal noise, τ is √(π/3) times the standard deviation (Hettmansperger and McKean 2011,
    /// section 3.5), and scores are spread evenly over √12·τ.
    #[test]
    fn scores_of_normal_noise_are_as_wide_as_theory_says() {
        // Normal quantiles in an order that has no trend.
        let count = 997;
        let values: Vec<f64> = (1..count)
            .map(|index| {
                let share = as_float(index * 541 % count) / as_float(count);
                let tail = share.min(1.0 - share);
                super::super::normal_upper(tail).copysign(share - 0.5)
            })
            .collect();
        let scores = ranked(&values).unwrap().scores;
        let widest = scores.iter().copied().fold(0.0, f64::max);
        let theory = 12f64.sqrt() / 2.0 * (std::f64::consts::PI / 3.0).sqrt();
        assert!((widest / theory - 1.0).abs() < 0.1, "{widest} {theory}");
    }

    #[test]
    fn constant_values_have_no_slope_and_no_noise() {
        let found = ranked(&[5.0; 50]).unwrap();
        assert!(found.slope.abs() < 1e-9 && found.scores.iter().all(|score| *score == 0.0));
        assert_eq!(ranked(&[1.0]), None);
    }

    proptest! {
        #[test]
        fn the_slope_is_that_of_all_pairs(values in prop::collection::vec(0.0..1e6f64, 2..60)) {
            let all = theil_sen_by_cycle(&values).unwrap().slope;
            let found = ranked(&values).unwrap().slope;
            prop_assert!((found - all).abs() <= 1e-2, "{found} {all}");
        }

        #[test]
        fn scores_of_usable_durations_are_finite(values in prop::collection::vec(0.0..=1e9f64, 2..60)) {
            let found = ranked(&values).unwrap();
            prop_assert!(found.slope.is_finite());
            prop_assert!(found.scores.iter().all(|score| score.is_finite()));
        }
    }
}
