//! A series of latencies as all rules see it: its median, its levels, and its steps.

use crate::judge::looks::Chances;
use crate::statistics::{BLOCKS, Level, Step, as_float, locations, median, ranges, steps};

/// Less than a nanosecond is zero: nothing can be told in percent of it.
pub(super) const SMALLEST_MS: f64 = 1e-6;

/// Latencies in the order of their cycles, with what more than one rule needs to know.
pub(crate) struct Series {
    /// The latencies, without the certain steps down. A run that warms up has such a step, and its
    /// slow beginning must not hide a later rise.
    pub(super) values: Vec<f64>,
    /// Their median as they were measured, which percentages refer to.
    pub(super) typical: f64,
    /// The level of each block as it was measured.
    pub(super) levels: Vec<Level>,
    /// The step between each two blocks, of the latencies as they were measured.
    pub(super) steps: Vec<Step>,
}

impl Series {
    /// Of latencies as they were measured; `None` if they cannot be judged: fewer than two, or
    /// a median of zero.
    pub(crate) fn of(values: &[f64], chances: Chances) -> Option<Self> {
        let typical = median(values).filter(|typical| *typical >= SMALLEST_MS)?;
        let levels: Vec<Level> = locations(values, BLOCKS);
        let steps = steps(&levels, chances.below);
        let mut without = values.to_vec();
        for (block, range) in ranges(values.len(), BLOCKS).enumerate() {
            let down: f64 = steps
                .iter()
                .filter(|step| is_down(step) && step.after_block < block)
                .map(|step| step.change.point(0.5))
                .sum();
            for value in without.get_mut(range).unwrap_or_default() {
                *value -= down;
            }
        }
        Some(Self {
            values: without,
            typical,
            levels,
            steps,
        })
    }

    /// How many cycles there are.
    pub(super) fn count(&self) -> usize {
        self.values.len()
    }

    /// The level before the step after the block `place`: the mean since the certain step before it.
    pub(super) fn level_before(&self, place: usize) -> f64 {
        let certain = self.steps.iter().filter(|step| step.is_certain);
        let since = certain
            .filter(|step| step.after_block < place)
            .map(|step| step.after_block + 1)
            .max()
            .unwrap_or(0);
        let levels = self.levels.get(since..=place).unwrap_or_default();
        let sum: f64 = levels.iter().map(|level| level.value).sum();
        sum / as_float(levels.len().max(1))
    }

    /// How many times the growth that is allowed per 300 cycles it may show.
    pub(super) fn spans(&self) -> f64 {
        super::spans(self.count())
    }

    /// The blocks after which the level went down for certain.
    pub(super) fn down(&self) -> Vec<usize> {
        let down = self.steps.iter().filter(|step| is_down(step));
        down.map(|step| step.after_block).collect()
    }

    /// How many blocks of at least six cycles it has, at most the usual number. Fewer cycles have
    /// no quantiles worth the name.
    pub(super) fn wide_blocks(&self) -> usize {
        (self.count() / 6).clamp(1, BLOCKS)
    }

    /// `value` in percent of the median.
    pub(super) fn percent(&self, value: f64) -> f64 {
        100.0 * value / self.typical
    }
}

fn is_down(step: &Step) -> bool {
    step.is_certain && step.change.point(0.5) < 0.0
}
