//! Synthetic series: flat, slowly rising, stepped, noisy, with outliers, too short. All seeded.

use super::*;

/// SplitMix64 (Steele, Lea and Flood 2014): random enough for synthetic latencies.
struct Seeded(u64);

impl Seeded {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / 9_007_199_254_740_992.0
    }

    /// Box-Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

const TYPICAL_MS: f64 = 600.0;

/// `count` latencies: typical, times `trend` of the cycle, with normal noise of `noise`.
fn series(seed: u64, count: usize, noise: f64, trend: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut random = Seeded(seed);
    (0..count)
        .map(|i| (TYPICAL_MS * trend(i) * (1.0 + noise * random.normal())).max(1.0))
        .collect()
}

fn flat(series: &[f64]) -> bool {
    judge(series, None, Clock::Real).flatness.flat
}

/// How many of `count` series made from seeds are judged flat.
fn judged_flat(count: u64, make: impl Fn(u64) -> Vec<f64>) -> u64 {
    (0..count).map(|seed| u64::from(flat(&make(seed)))).sum()
}

/// Series per test; `CYCLES_SIMULATIONS=1000` gives the figures in the module's documentation.
fn simulations() -> u64 {
    std::env::var("CYCLES_SIMULATIONS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(60)
}

fn assert_false_alarms(make: impl Fn(u64) -> Vec<f64>, per_thousand: u64) {
    let count = simulations();
    let alarms = count - judged_flat(count, make);
    println!("{alarms} false alarms in {count}");
    assert!(
        alarms * 1000 <= per_thousand * count,
        "{alarms} false alarms in {count}"
    );
}

#[test]
fn quiet_flat_series_raise_no_alarm() {
    assert_false_alarms(|seed| series(seed, 300, 0.05, |_| 1.0), 0);
    assert_false_alarms(|seed| series(seed, 60, 0.05, |_| 1.0), 0);
}

#[test]
fn noisy_flat_series_raise_no_alarm() {
    assert_false_alarms(|seed| series(seed, 300, 0.25, |_| 1.0), 2);
    assert_false_alarms(|seed| series(seed, 60, 0.25, |_| 1.0), 5);
    assert_false_alarms(|seed| series(seed, MIN_CYCLES, 0.25, |_| 1.0), 10);
}

#[test]
fn skewed_noise_raises_no_alarm() {
    let make = |seed| -> Vec<f64> {
        let mut random = Seeded(seed);
        (0..300)
            .map(|_| TYPICAL_MS * (0.4 * random.normal()).exp())
            .collect()
    };
    assert_false_alarms(make, 5);
}

#[test]
fn outliers_raise_no_alarm() {
    let make = |seed| -> Vec<f64> {
        let mut random = Seeded(seed);
        let mut values = series(seed ^ 0xff, 300, 0.1, |_| 1.0);
        for value in &mut values {
            if random.uniform() < 0.1 {
                *value *= 5.0;
            }
        }
        values
    };
    assert_false_alarms(make, 5);
}

#[test]
fn noise_with_correlated_neighbours_raises_few_alarms() {
    let make = |seed| -> Vec<f64> {
        let mut random = Seeded(seed);
        let mut state = 0.0;
        (0..300)
            .map(|_| {
                state = 0.5 * state + 0.1 * random.normal();
                TYPICAL_MS * (1.0 + state)
            })
            .collect()
    };
    assert_false_alarms(make, 5);
}

#[test]
fn a_slow_rise_is_always_found() {
    let slow = |i: usize| 1.0 + 0.002 * as_float(i);
    let count = simulations();
    assert_eq!(judged_flat(count, |seed| series(seed, 300, 0.05, slow)), 0);
    assert_eq!(judged_flat(count, |seed| series(seed, 300, 0.25, slow)), 0);
}

#[test]
fn the_reported_bug_is_always_found_in_a_matrix_cell() {
    // One more attempt per cycle, each of which costs a pause of 30 ms.
    let bug = |i: usize| 1.0 + 0.05 * as_float(i);
    assert_eq!(
        judged_flat(simulations(), |seed| series(seed, 60, 0.25, bug)),
        0
    );
}

#[test]
fn a_step_is_always_found_wherever_it_is() {
    let count = simulations();
    for start in [60, 150, 240] {
        let step = |i: usize| if i < start { 1.0 } else { 1.4 };
        assert_eq!(
            judged_flat(count, |seed| series(seed, 300, 0.1, step)),
            0,
            "step at {start}"
        );
    }
}

#[test]
fn a_rise_at_the_very_end_breaks_the_decile_rule() {
    let judgement = judge(
        &series(1, 300, 0.05, |i| if i < 270 { 1.0 } else { 2.0 }),
        None,
        Clock::Real,
    );
    assert!(!judgement.flatness.flat);
    assert!(!judgement.rules[1].holds, "{:?}", judgement.rules);
}

#[test]
fn becoming_faster_is_flat() {
    assert!(flat(&series(1, 300, 0.05, |i| 1.5 - 0.003 * as_float(i))));
}

#[test]
fn a_significant_but_tiny_rise_is_flat() {
    // 2 % over the run, with so little noise that the interval excludes zero.
    let values = series(1, 300, 0.001, |i| 1.0 + 0.02 * as_float(i) / 300.0);
    let judgement = judge(&values, None, Clock::Real);
    assert!(judgement.slope.unwrap().interval.0 > 0.0);
    assert!(judgement.flatness.flat, "{}", judgement.flatness.reason);
}

#[test]
fn too_few_cycles_give_no_verdict() {
    let judgement = judge(&series(1, MIN_CYCLES - 1, 0.01, |_| 1.0), None, Clock::Real);
    assert!(!judgement.flatness.flat);
    assert!(judgement.rules.is_empty());
    assert_eq!(
        judgement.flatness.reason,
        "too few cycles for a verdict: 29, at least 30 are needed"
    );
    assert!(!flat(&[]));
}

#[test]
fn a_failed_check_is_the_reason_whatever_the_figures() {
    let failed = FailedCheck {
        cycle: 7,
        check: "boot_id".to_owned(),
        message: "the guest rebooted".to_owned(),
    };
    let judgement = judge(&series(1, 300, 0.01, |_| 1.0), Some(&failed), Clock::Real);
    assert!(!judgement.flatness.flat);
    assert_eq!(judgement.flatness.reason, "cycle 7: the guest rebooted");
}

#[test]
fn the_reason_names_the_figures_and_the_rules_their_bounds() {
    let judgement = judge(
        &series(1, 300, 0.05, |i| 1.0 + 0.01 * as_float(i)),
        None,
        Clock::Real,
    );
    assert!(judgement.flatness.reason.contains("ms per cycle is +"));
    assert!(judgement.flatness.reason.contains("ratio"));
    assert!(
        judgement.rules[0].requirement.contains("5 %"),
        "{}",
        judgement.rules[0].requirement
    );
    assert!(
        judgement.rules[1].requirement.contains("1.25"),
        "{}",
        judgement.rules[1].requirement
    );
}

#[test]
fn latencies_of_zero_give_no_verdict() {
    assert!(!flat(&[0.0; 40]));
}
