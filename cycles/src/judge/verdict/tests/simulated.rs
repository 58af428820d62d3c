//! Simulated series: noise of many kinds, and what grows in it. All seeded.

use super::recorded::{Recording, TYPICAL_MS};

/// SplitMix64 (Steele, Lea and Flood 2014): random enough for synthetic latencies.
pub(super) struct Seeded(pub(super) u64);

impl Seeded {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    pub(super) fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / 9_007_199_254_740_992.0
    }

    /// Box-Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// An index of `count` things.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a slice"
    )]
    fn index(&mut self, count: usize) -> usize {
        (self.uniform() * count as f64) as usize
    }
}

/// What latencies do beside growing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Noise {
    /// Resampled from a recording in pieces of twelve cycles on average, which keeps how neighbours
    /// hang together: the stationary bootstrap of Politis and Romano (1994).
    Recorded(Recording),
    /// Normal, with this standard deviation as a share of the median.
    Normal(f64),
    /// Log-normal, with this standard deviation of the logarithm.
    LogNormal(f64),
    /// Normal with 10 %, and every tenth value five times as large.
    Outliers,
    /// Autoregressive: a standard deviation of 5 %, and this correlation of neighbours.
    Correlated(f64),
    /// A random walk with steps of this share of the median, and normal noise of 3 %.
    Walk(f64),
    /// Normal with 3 %, and a load of the host that makes everything 10 % slower or faster, as a
    /// sine of this many cycles.
    Load(f64),
    /// The same load switched on and off, every 80 cycles on average.
    Switched,
}

impl Noise {
    /// The median that it is noise of, in ms.
    pub(super) const fn typical_ms(self) -> f64 {
        match self {
            Self::Recorded(run) => run.typical_ms,
            _ => TYPICAL_MS,
        }
    }

    /// What it is resampled from.
    const fn recorded_ms(self) -> &'static [f64] {
        match self {
            Self::Recorded(run) => run.resumes_ms,
            _ => &[],
        }
    }
}

/// What grows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Growth {
    /// Nothing.
    None,
    /// Milliseconds per cycle.
    Trend(f64),
    /// From this cycle on, everything takes this many times as long.
    Step(usize, f64),
    /// Until this cycle, everything takes this many times as long; a step follows.
    WarmUp(usize, f64, usize, f64),
    /// It rises by this share, at first steeply and ever less: two thirds of it until this cycle, as
    /// a guest that spreads over more of its memory.
    Settles(f64, f64),
    /// Every third cycle rises by so many milliseconds per cycle.
    Third(f64),
    /// The probability that a cycle takes three times as long rises linearly to this.
    Tail(f64),
}

/// `count` latencies in ms.
pub(super) fn series(noise: Noise, growth: Growth, count: usize, seed: u64) -> Vec<f64> {
    let mut random = Seeded(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let (phase, mut state) = (random.uniform(), random.normal());
    let mut load = if random.uniform() < 0.5 { -0.1 } else { 0.1 };
    let typical_ms = noise.typical_ms();
    let recorded = noise.recorded_ms();
    let mut place = random.index(recorded.len());
    if let Noise::Walk(_) = noise {
        state = 0.0;
    }
    (0..count)
        .map(|index| {
            let cycle = f64::from(u32::try_from(index).unwrap());
            let share = match noise {
                Noise::Recorded(_) => {
                    place = if random.uniform() < 1.0 / 12.0 {
                        random.index(recorded.len())
                    } else {
                        (place + 1) % recorded.len()
                    };
                    recorded[place] / typical_ms
                }
                Noise::Normal(deviation) => 1.0 + deviation * random.normal(),
                Noise::LogNormal(deviation) => (deviation * random.normal()).exp(),
                Noise::Outliers => {
                    let factor = if random.uniform() < 0.1 { 5.0 } else { 1.0 };
                    factor * (1.0 + 0.1 * random.normal())
                }
                Noise::Correlated(with) => {
                    state = with * state + (1.0 - with * with).sqrt() * random.normal();
                    1.0 + 0.05 * state
                }
                Noise::Walk(step) => {
                    state += step * random.normal();
                    1.0 + state + 0.03 * random.normal()
                }
                Noise::Load(period) => {
                    let turn = std::f64::consts::TAU * (cycle / period + phase);
                    1.0 + 0.1 * turn.sin() + 0.03 * random.normal()
                }
                Noise::Switched => {
                    if random.uniform() < 1.0 / 80.0 {
                        load = -load;
                    }
                    1.0 + load + 0.03 * random.normal()
                }
            };
            let ms = typical_ms * share;
            let grown = match growth {
                Growth::None => ms,
                Growth::Trend(per_cycle) => ms + per_cycle * cycle,
                Growth::Step(at, factor) => ms * if index < at { 1.0 } else { factor },
                Growth::WarmUp(until, first, at, _) if index < until.min(at) => ms * first,
                Growth::WarmUp(_, _, at, last) => ms * if index < at { 1.0 } else { last },
                Growth::Settles(share, until) => {
                    ms * (1.0 + share * (1.0 - (-cycle / until).exp()))
                }
                Growth::Third(per_cycle) => {
                    ms + if index % 3 == 0 {
                        per_cycle * cycle
                    } else {
                        0.0
                    }
                }
                Growth::Tail(most) => {
                    let end = f64::from(u32::try_from(count).unwrap());
                    ms * if random.uniform() < most * cycle / end {
                        3.0
                    } else {
                        1.0
                    }
                }
            };
            grown.max(0.1)
        })
        .collect()
}
