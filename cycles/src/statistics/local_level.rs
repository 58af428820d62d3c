//! How far the level of a series has moved, where it is not known how its noise wanders.
//!
//! The model is the *local level* of Harvey (1989), "Forecasting, structural time series models and
//! the Kalman filter", section 2.3: each block is a level plus white noise, and the level is a
//! random walk with a drift, with sudden steps, or with neither. White noise alone, correlated
//! noise and a random walk are all close to one of its cases, and they differ in one number: the
//! variance of the walk's steps over that of the white noise, here `walk`.
//!
//! Differences between neighbouring blocks have a tridiagonal covariance under this model, so that
//! generalised least squares needs no library. Nobody knows `walk`. Each of some values is given
//! the weight of its restricted likelihood (Harville 1977), and an interval is that of the mixture
//! of the Student distributions that belong to them. An interval is therefore narrow where the
//! noise is seen to be white and wide where it wanders, and wider than either where the series is
//! too short to tell.

use super::as_float;
use super::blocks::Level;
use super::distribution::{bisect, student_at_most};

/// Variances of the walk per block, in units of the white noise of a block, with the share of the
/// prior that each has. The largest is a random walk without white noise.
const WALKS: [(f64, f64); 9] = [
    (0.0, 0.92),
    (0.003, 0.01),
    (0.01, 0.01),
    (0.03, 0.01),
    (0.1, 0.01),
    (0.3, 0.01),
    (1.0, 0.01),
    (10.0, 0.01),
    (1000.0, 0.01),
];

/// An estimate and its ends at some confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interval {
    /// Lower end.
    pub(crate) lower: f64,
    /// The middle of the distribution.
    pub(crate) middle: f64,
    /// Upper end.
    pub(crate) upper: f64,
}

/// A change of the level that came between two blocks and stayed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    /// It is between this block and the next, from 0.
    pub(crate) after_block: usize,
    /// How far the level moved.
    pub(crate) change: Estimate,
    /// Whether it is beyond chance.
    pub(crate) is_certain: bool,
}

/// A mixture of Student distributions, one for each value of `walk`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    parts: [Part; WALKS.len()],
    freedom: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Part {
    middle: f64,
    error: f64,
    weight: f64,
}

impl Estimate {
    /// The interval that leaves the probability `below` under it and `above` over it.
    pub(crate) fn interval(&self, below: f64, above: f64) -> Interval {
        Interval {
            lower: self.point(below),
            middle: self.point(0.5),
            upper: self.point(1.0 - above),
        }
    }

    /// The point below which the value lies with `probability`.
    pub(crate) fn point(&self, probability: f64) -> f64 {
        let widest = self.parts.iter().map(|part| part.error).fold(0.0, f64::max);
        let ends = self.parts.iter().map(|part| part.middle);
        let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), middle| {
            (low.min(middle), high.max(middle))
        });
        // Two degrees of freedom at a tail of 1e-8 need 7,071 errors.
        let reach = 1e4 * widest;
        bisect(low - reach, high + reach, 12, |value| {
            self.at_most(value) < probability
        })
    }

    /// The probability that the value is at most `value`.
    fn at_most(&self, value: f64) -> f64 {
        self.parts
            .iter()
            .map(|part| {
                let below = if part.error > 0.0 {
                    student_at_most((value - part.middle) / part.error, self.freedom)
                } else {
                    f64::from(u8::from(part.middle <= value))
                };
                part.weight * below
            })
            .sum()
    }

    /// How improbable it is that the value is zero or on the other side of it.
    fn doubt(&self) -> f64 {
        let below = self.at_most(0.0);
        below.min(1.0 - below)
    }

    /// Of `parts` that hold the logarithm of their weight.
    fn of(mut parts: [Part; WALKS.len()], freedom: usize) -> Self {
        let largest = parts
            .iter()
            .map(|part| part.weight)
            .fold(f64::NEG_INFINITY, f64::max);
        for part in &mut parts {
            // A place that was taken out has no likelihood at all.
            let ratio = part.weight - largest;
            part.weight = if ratio.is_nan() { 1.0 } else { ratio.exp() };
        }
        let sum: f64 = parts.iter().map(|part| part.weight).sum();
        for part in &mut parts {
            part.weight /= sum;
        }
        Self { parts, freedom }
    }
}

/// The drift of `levels` per value of the series, apart from the steps after the blocks `without`.
/// `None` with fewer than three differences left.
pub(crate) fn drift(levels: &[Level], without: &[usize]) -> Option<Estimate> {
    let fits = Fits::new(levels, without)?;
    let lengths: Vec<f64> = levels
        .windows(2)
        .map(|pair| pair[1].at - pair[0].at)
        .collect();
    Some(fits.estimate(|fit| {
        let weighted = fit.model.times(&lengths);
        (dot(&weighted, &lengths), dot(&weighted, &fits.differences))
    }))
}

/// Most steps that are told apart in one series.
const MOST_STEPS: usize = 4;

/// The step between each two blocks, apart from the certain ones elsewhere. A step is certain if
/// the probability that it is chance is below `chance`, all places together.
pub(crate) fn steps(levels: &[Level], chance: f64) -> Vec<Step> {
    let places = levels.len().saturating_sub(1);
    let certain = certain_steps(levels, chance / as_float(places.max(1)));
    let elsewhere = apart_from(levels, &certain);
    (0..places)
        .filter_map(|place| {
            let is_certain = certain.contains(&place);
            let change = if is_certain {
                let others: Vec<usize> = certain
                    .iter()
                    .copied()
                    .filter(|one| *one != place)
                    .collect();
                *apart_from(levels, &others).get(place)?
            } else {
                *elsewhere.get(place)?
            };
            Some(Step {
                after_block: place,
                change,
                is_certain,
            })
        })
        .collect()
}

/// The places of the certain steps: each is chance with a probability below `chance`, as long as the
/// other ones are taken out.
fn certain_steps(levels: &[Level], chance: f64) -> Vec<usize> {
    let mut certain = Vec::new();
    while certain.len() < MOST_STEPS {
        let Some((place, doubt)) = most_certain(levels, &certain) else {
            break;
        };
        if doubt < chance {
            certain.push(place);
            continue;
        }
        // Two steps hide each other: what one leaves is noise to the other. A pair is one of as many
        // as there are places, squared.
        let with = |one: usize| [certain.as_slice(), &[one]].concat();
        let Some((second, second_doubt)) = most_certain(levels, &with(place)) else {
            break;
        };
        let first = apart_from(levels, &with(second));
        let first_doubt = first.get(place).map_or(1.0, Estimate::doubt);
        let places = as_float(levels.len());
        if first_doubt.max(second_doubt) >= chance / places {
            break;
        }
        certain.extend([place, second]);
    }
    certain
}

/// The step that is least likely to be chance, and how likely that is, apart from those after the
/// blocks `others`.
fn most_certain(levels: &[Level], others: &[usize]) -> Option<(usize, f64)> {
    apart_from(levels, others)
        .iter()
        .enumerate()
        .filter(|(place, _)| !others.contains(place))
        .map(|(place, step)| (place, step.doubt()))
        .min_by(|a, b| a.1.total_cmp(&b.1))
}

/// The step after each block, apart from those after the blocks `others`. Those have no meaning.
fn apart_from(levels: &[Level], others: &[usize]) -> Vec<Estimate> {
    let Some(fits) = Fits::new(levels, others) else {
        return Vec::new();
    };
    (0..fits.differences.len())
        .map(|place| {
            fits.estimate(|fit| {
                let own = fit
                    .model
                    .precision
                    .get(place)
                    .and_then(|row| row.get(place));
                let product = fit.weighted.get(place);
                (
                    own.copied().unwrap_or_default(),
                    product.copied().unwrap_or_default(),
                )
            })
        })
        .collect()
}

/// The differences of a series under each value of `walk`.
struct Fits {
    differences: Vec<f64>,
    fits: Vec<Fit>,
    /// Degrees of freedom that are left with one regressor.
    freedom: usize,
    /// The smallest sum of squares that is told from none.
    floor: f64,
}

/// The same under one value of `walk`.
struct Fit {
    model: Model,
    prior: f64,
    /// The differences times the precision.
    weighted: Vec<f64>,
    /// Their weighted sum of squares.
    squares: f64,
}

impl Fits {
    fn new(levels: &[Level], without: &[usize]) -> Option<Self> {
        let differences: Vec<f64> = levels
            .windows(2)
            .map(|pair| pair[1].value - pair[0].value)
            .collect();
        let freedom = differences.len().checked_sub(without.len() + 1)?;
        if freedom < 2 {
            return None;
        }
        let fits = WALKS.iter().map(|(walk, prior)| {
            let mut model = Model::new(levels, *walk);
            without.iter().for_each(|step| model.take_out(*step));
            let weighted = model.times(&differences);
            Fit {
                squares: dot(&weighted, &differences),
                model,
                prior: *prior,
                weighted,
            }
        });
        Some(Self {
            fits: fits.collect(),
            differences,
            freedom,
            floor: rounding(levels),
        })
    }

    /// The coefficient of a regressor, whose products with itself and with the differences are
    /// told by `products`.
    fn estimate(&self, products: impl Fn(&Fit) -> (f64, f64)) -> Estimate {
        let freedom = as_float(self.freedom);
        let mut parts = [Part::default(); WALKS.len()];
        for (part, fit) in parts.iter_mut().zip(&self.fits) {
            let (itself, product) = products(fit);
            *part = if itself > 0.0 {
                let left = (fit.squares - product * product / itself).max(self.floor);
                let likelihood = fit.model.log_determinant + itself.ln() + freedom * left.ln();
                Part {
                    middle: product / itself,
                    error: (left / freedom / itself).sqrt(),
                    weight: fit.prior.ln() - 0.5 * likelihood,
                }
            } else {
                Part {
                    weight: f64::NEG_INFINITY,
                    ..Part::default()
                }
            };
        }
        Estimate::of(parts, self.freedom)
    }
}

/// The smallest variance that is told from none: floats hold fifteen digits, and a series without
/// any noise must not divide by zero.
fn rounding(levels: &[Level]) -> f64 {
    let largest = levels
        .iter()
        .map(|level| level.value.abs())
        .fold(0.0, f64::max);
    (1e-9 * largest).powi(2).max(f64::MIN_POSITIVE)
}

/// The covariance of the differences under one value of `walk`.
struct Model {
    /// Inverse of the covariance of the differences, in units of the white noise's variance, with
    /// what was taken out projected away.
    precision: Vec<Vec<f64>>,
    /// Logarithm of the determinants that the restricted likelihood divides by.
    log_determinant: f64,
}

impl Model {
    fn new(levels: &[Level], walk: f64) -> Self {
        let count = levels.len().saturating_sub(1);
        let mean: f64 =
            levels.iter().map(|level| level.count).sum::<f64>() / as_float(levels.len());
        // A block of fewer values has more noise.
        let noise: Vec<f64> = levels.iter().map(|level| mean / level.count).collect();
        // LDLᵀ of a tridiagonal matrix.
        let mut pivots = Vec::with_capacity(count);
        let mut factors = Vec::with_capacity(count);
        for index in 0..count {
            let diagonal = noise[index] + noise[index + 1] + walk;
            let factor = pivots.last().map_or(0.0, |before| -noise[index] / before);
            pivots.push(diagonal + factor * noise[index]);
            factors.push(factor);
        }
        let mut precision = vec![vec![0.0; count]; count];
        for (column, row) in precision.iter_mut().enumerate() {
            // The matrix is symmetric, so that a solved column is a row as well.
            row[column] = 1.0;
            for index in column + 1..count {
                row[index] = -factors[index] * row[index - 1];
            }
            for (value, pivot) in row.iter_mut().zip(&pivots) {
                *value /= pivot;
            }
            for index in (0..count.saturating_sub(1)).rev() {
                row[index] -= factors[index + 1] * row[index + 1];
            }
        }
        Self {
            precision,
            log_determinant: pivots.iter().map(|pivot: &f64| pivot.ln()).sum(),
        }
    }

    /// Takes a step of any size after the block `place` out of what is left.
    fn take_out(&mut self, place: usize) {
        let Some(own) = self.precision.get(place).cloned() else {
            return;
        };
        let Some(pivot) = own.get(place).copied().filter(|pivot| *pivot > 0.0) else {
            return;
        };
        self.log_determinant += pivot.ln();
        for (row, left) in self.precision.iter_mut().zip(&own) {
            for (value, right) in row.iter_mut().zip(&own) {
                *value -= left * right / pivot;
            }
        }
    }

    fn times(&self, vector: &[f64]) -> Vec<f64> {
        self.precision.iter().map(|row| dot(row, vector)).collect()
    }
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(values: &[f64]) -> Vec<Level> {
        let middles = (0..values.len()).map(|block| 5.0 + 10.0 * as_float(block));
        middles
            .zip(values)
            .map(|(at, value)| Level {
                at,
                count: 10.0,
                value: *value,
            })
            .collect()
    }

    fn close(found: Interval, expected: [f64; 3]) {
        for (found, expected) in [found.lower, found.middle, found.upper]
            .iter()
            .zip(expected)
        {
            assert!(
                (found - expected).abs() < 1e-7,
                "found {found}, expected {expected}"
            );
        }
    }

    /// A second implementation: generalised least squares on the levels themselves, with their dense
    /// covariance, an intercept and the restricted likelihood, in numpy 2.4.6, and the points of the
    /// mixture by `scipy.optimize.brentq` on `scipy.stats.t.cdf` of scipy 1.17.1.
    #[test]
    fn a_drift_agrees_with_least_squares_on_the_dense_covariance() {
        let levels = levels(&[5.1, 4.8, 5.6, 5.3, 6.2, 5.7, 6.9, 6.1, 7.4, 6.6, 7.0, 7.9]);
        let found = drift(&levels, &[]).unwrap().interval(0.001, 0.025);
        close(
            found,
            [
                0.007_060_794_986_072_073,
                0.024_127_959_169_996_79,
                0.032_450_985_459_994_16,
            ],
        );
    }

    /// By the same second implementation, with a step as the regressor.
    #[test]
    fn a_step_agrees_with_least_squares_on_the_dense_covariance() {
        let levels = levels(&[5.1, 4.8, 5.6, 5.3, 5.2, 4.7, 5.9, 5.1, 8.4, 8.6, 8.0, 8.9]);
        let steps = steps(&levels, 0.01);
        let certain: Vec<usize> = steps
            .iter()
            .filter(|step| step.is_certain)
            .map(|step| step.after_block)
            .collect();
        assert_eq!(certain, [7]);
        close(
            steps[7].change.interval(0.001, 0.025),
            [
                2.226_293_579_152_046,
                3.261_672_166_591_509_4,
                3.799_019_182_488_183_6,
            ],
        );
    }

    #[test]
    fn two_steps_that_hide_each_other_are_both_found() {
        let values: Vec<f64> = (0..30)
            .map(|block| {
                let level = if (10..20).contains(&block) {
                    30.0
                } else {
                    44.0
                };
                level + f64::from(block * block % 7) / 2.0
            })
            .collect();
        let steps = steps(&levels(&values), 0.001);
        let certain = steps.iter().filter(|step| step.is_certain);
        let certain: Vec<usize> = certain.map(|step| step.after_block).collect();
        assert_eq!(certain, [9, 19]);
    }

    #[test]
    fn levels_without_noise_have_an_exact_drift() {
        let values: Vec<f64> = (0..30).map(|block| 3.0 + 0.5 * f64::from(block)).collect();
        let found = drift(&levels(&values), &[]).unwrap().interval(0.001, 0.001);
        assert!((found.lower - 0.05).abs() < 1e-6 && (found.upper - 0.05).abs() < 1e-6);
        assert_eq!(
            drift(&levels(&[1.0, 2.0]), &[]).map(|one| one.point(0.5)),
            None
        );
    }
}
