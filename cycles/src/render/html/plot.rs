//! The frame of a plot over cycles: axes, grid, and the position of a value.
//!
//! The drawing is stretched to the available room (`preserveAspectRatio="none"`). Text is therefore
//! HTML around it and never shrinks, and strokes do not scale. A mark is a line of no length with
//! round caps, which stays a round dot.

use std::fmt::Write;

use super::text::{Text, ms};
use crate::statistics::as_float;

/// Width and height of every drawing in its own units.
pub(super) const SIDE: f64 = 1000.0;

/// The value axis: from zero to a round number, with three to five ticks.
#[derive(Debug, Clone, Copy)]
pub(super) struct ValueAxis {
    top: f64,
    step: f64,
}

impl ValueAxis {
    /// Covers zero to `largest`.
    pub(super) fn covering(largest: f64) -> Self {
        let largest = if largest > 0.0 { largest } else { 1.0 };
        let rough = largest / 4.0;
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * magnitude)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        Self {
            top: (largest / step).ceil() * step,
            step,
        }
    }

    /// Covers whole numbers only, such as attempts.
    pub(super) fn covering_counts(largest: u32) -> Self {
        let axis = Self::covering(f64::from(largest.max(1)));
        if axis.step >= 1.0 {
            axis
        } else {
            Self {
                top: axis.top.ceil(),
                step: 1.0,
            }
        }
    }

    /// The position of a value, from the top. Values beyond the axis are on its edge.
    pub(super) fn y(&self, value: f64) -> f64 {
        SIDE - SIDE * (value / self.top).clamp(0.0, 1.0)
    }

    pub(super) fn top(&self) -> f64 {
        self.top
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        (0u32..=8)
            .map(|n| f64::from(n) * self.step)
            .take_while(|tick| *tick <= self.top * 1.001)
    }
}

/// The position of the cycle at `index` of `count`: the middle of its share of the width.
pub(super) fn x(index: usize, count: usize) -> f64 {
    SIDE * (as_float(index) + 0.5) / as_float(count.max(1))
}

/// A whole plot: axes around `drawing`.
pub(super) struct Plot<'a> {
    /// What it shows, for screen readers.
    pub(super) description: &'a str,
    pub(super) axis: ValueAxis,
    pub(super) count: usize,
    pub(super) height_px: u32,
    /// SVG in units of [`SIDE`].
    pub(super) drawing: &'a str,
    /// Cycle numbers below it.
    pub(super) x_labels: bool,
}

impl Plot<'_> {
    pub(super) fn to_html(&self) -> String {
        let mut labels = String::new();
        let mut grid = String::new();
        for tick in self.axis.ticks() {
            let y = self.axis.y(tick);
            let bottom = 100.0 - y / 10.0;
            let label = if tick.fract() == 0.0 {
                ms(tick).replace(".00", "")
            } else {
                ms(tick)
            };
            let label = label
                .strip_suffix(".0")
                .map_or(label.clone(), str::to_owned);
            // Writing to a string cannot fail, here and below.
            let _ = write!(
                labels,
                r#"<span style="bottom:{bottom:.2}%">{label}</span>"#
            );
            let class = if tick == 0.0 { "base" } else { "grid" };
            let _ = write!(grid, r#"<path class="{class}" d="M0 {y:.1}H1000"/>"#);
        }
        let x_axis = if self.x_labels {
            x_axis(self.count)
        } else {
            String::new()
        };
        format!(
            r#"<div class="plot" style="--height:{}px"><div class="y-axis" aria-hidden="true">{labels}</div><div class="area" data-cycles="{}"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{}">{grid}{}</svg><div class="cursor" hidden></div></div>{x_axis}</div>"#,
            self.height_px,
            self.count,
            Text(self.description),
            self.drawing,
        )
    }
}

fn x_axis(count: usize) -> String {
    let mut labels = String::new();
    let last = count.saturating_sub(1);
    let mut indices = vec![0, last / 4, last / 2, last * 3 / 4, last];
    indices.dedup();
    for index in indices {
        let (left, number) = (x(index, count) / 10.0, super::text::count(index + 1));
        let _ = write!(labels, r#"<span style="left:{left:.2}%">{number}</span>"#);
    }
    format!(r#"<div class="x-axis" aria-hidden="true">{labels}<em>cycle</em></div>"#)
}

/// A dot with its own tooltip.
pub(super) fn mark(class: &str, x: f64, y: f64, title: &str) -> String {
    format!(
        r#"<path class="mark {class}" d="M{x:.2} {y:.1}h.01"><title>{}</title></path>"#,
        Text(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_on_a_round_number_above_the_largest_value() {
        let axis = ValueAxis::covering(633.0);
        assert_eq!(axis.top(), 800.0);
        assert_eq!(
            axis.ticks().collect::<Vec<_>>(),
            [0.0, 200.0, 400.0, 600.0, 800.0]
        );
    }

    #[test]
    fn an_axis_of_counts_has_whole_ticks() {
        let axis = ValueAxis::covering_counts(1);
        assert_eq!(axis.ticks().collect::<Vec<_>>(), [0.0, 1.0]);
    }

    #[test]
    fn every_value_is_within_the_drawing() {
        let axis = ValueAxis::covering(0.0);
        assert_eq!((axis.y(0.0), axis.y(1e9)), (SIDE, 0.0));
        assert!(x(0, 0).is_finite());
    }
}
