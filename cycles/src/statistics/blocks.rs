//! A series in blocks of consecutive values, each summed up in one level.
//!
//! Blocks make a long series short, take away what is faster than they are long, and make what is
//! left close to normal, whatever the distribution of single values.

use std::ops::Range;

use super::{as_float, median, quantile, scatter};

/// How many blocks a series is cut into. As many as there are time scales to tell apart, and so few
/// that ten values are in each at 300.
pub(crate) const BLOCKS: usize = 30;

/// In units of the standard deviation: what is farther away counts as if it were there. With
/// normal noise this loses 5 % against the mean (Huber 1964, "Robust estimation of a location
/// parameter").
const HUBER: f64 = 1.345;

/// A block and its level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Level {
    /// The middle of the block, from 0 at the start of the series, in values.
    pub(crate) at: f64,
    /// How many values it has.
    pub(crate) count: f64,
    /// Its level, in the unit of the values.
    pub(crate) value: f64,
}

/// The ranges of `count` values in `blocks` blocks of nearly equal length.
pub(crate) fn ranges(count: usize, blocks: usize) -> impl Iterator<Item = Range<usize>> {
    let blocks = blocks.min(count);
    (0..blocks).map(move |block| block * count / blocks..(block + 1) * count / blocks)
}

/// Huber's estimate of location in each block, with one scale for all.
pub(crate) fn locations(values: &[f64], blocks: usize) -> Vec<Level> {
    let clip = HUBER * within_blocks(values, blocks);
    let blocks = ranges(values.len(), blocks);
    summed_up(values, blocks, |block| location(block, clip))
}

/// The mean of each of these blocks.
pub(crate) fn means(values: &[f64], blocks: impl Iterator<Item = Range<usize>>) -> Vec<Level> {
    summed_up(values, blocks, |block| {
        (!block.is_empty()).then(|| block.iter().sum::<f64>() / as_float(block.len()))
    })
}

/// The `q`-quantile of each block.
pub(crate) fn quantiles(values: &[f64], blocks: usize, q: f64) -> Vec<Level> {
    let blocks = ranges(values.len(), blocks);
    summed_up(values, blocks, |block| quantile(block, q))
}

fn summed_up(
    values: &[f64],
    blocks: impl Iterator<Item = Range<usize>>,
    level: impl Fn(&[f64]) -> Option<f64>,
) -> Vec<Level> {
    blocks
        .filter_map(|range| {
            Some(Level {
                at: f64::midpoint(as_float(range.start), as_float(range.end)),
                count: as_float(range.len()),
                value: level(values.get(range)?)?,
            })
        })
        .collect()
}

/// The standard deviation of values around the level of their block, whatever the levels do.
fn within_blocks(values: &[f64], blocks: usize) -> f64 {
    if values.len() < 4 * blocks {
        return scatter(values).unwrap_or(0.0);
    }
    let distances: Vec<f64> = ranges(values.len(), blocks)
        .filter_map(|range| values.get(range))
        .filter_map(|block| median(block).map(|middle| (block, middle)))
        .flat_map(|(block, middle)| block.iter().map(move |value| (value - middle).abs()))
        .collect();
    median(&distances).unwrap_or(0.0) / super::NORMAL_MAD
}

/// Huber's estimate: the point around which the clipped distances sum to zero.
fn location(values: &[f64], clip: f64) -> Option<f64> {
    let mut centre = median(values)?;
    // Each round reduces the error by the share of clipped values; twenty leave nothing to see.
    for _ in 0..20 {
        let pull: f64 = values
            .iter()
            .map(|value| (value - centre).clamp(-clip, clip))
            .sum();
        centre += pull / as_float(values.len());
    }
    Some(centre)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_a_series_without_gaps() {
        let all: Vec<usize> = ranges(307, BLOCKS).flatten().collect();
        assert_eq!(all, (0..307).collect::<Vec<_>>());
        assert!(ranges(307, BLOCKS).all(|range| (10..=11).contains(&range.len())));
        assert_eq!(ranges(4, BLOCKS).count(), 4);
    }

    #[test]
    fn an_outlier_hardly_moves_a_level() {
        let mut values: Vec<f64> = (0..300).map(|n| 10.0 + f64::from(n % 5) / 10.0).collect();
        values[7] = 1e6;
        let levels = locations(&values, BLOCKS);
        assert!(
            (levels[0].value - levels[1].value).abs() < 0.1,
            "{levels:?}"
        );
        assert!((levels[0].at - 5.0).abs() < 1e-9);
    }

    #[test]
    fn a_step_between_blocks_is_kept_in_full() {
        let values: Vec<f64> = (0..300).map(|n| if n < 290 { 1.0 } else { 10.0 }).collect();
        let levels = locations(&values, BLOCKS);
        assert_eq!((levels[28].value, levels[29].value), (1.0, 10.0));
    }
}
