//! What the verdict says about series that are known to be flat, to grow, or to be too short.

mod recorded;
mod simulated;
mod table;

use proptest::prelude::*;

use super::*;
use crate::record::{Attempt, AttemptOutcome, Phases, Resources, Unit};
use recorded::{TYPICAL_MS, WITH_TICKS, WITHOUT_TICKS};
use simulated::{Growth, Noise, series};

fn judged(values: &[f64]) -> Flatness {
    judge_latencies(values, Clock::Virtual, 1).flatness
}

fn outcome(noise: Noise, growth: Growth, count: usize, seed: u64) -> Outcome {
    judged(&series(noise, growth, count, seed)).outcome
}

fn rule<'a>(flatness: &'a Flatness, name: &str) -> &'a Rule {
    let mut rules = flatness.rules.iter();
    rules.find(|rule| rule.name == name).unwrap()
}

/// 100 series of each, resampled from recorded runs.
#[test]
fn a_leak_of_a_twentieth_of_a_millisecond_is_always_rising_and_a_tiny_one_never() {
    for recording in [WITH_TICKS, WITHOUT_TICKS] {
        for seed in 0..100 {
            let leak = |ms| outcome(Noise::Recorded(recording), Growth::Trend(ms), 300, seed);
            assert_eq!(leak(0.05), Outcome::Rising, "seed {seed}");
            assert_ne!(leak(0.002), Outcome::Rising, "seed {seed}");
        }
    }
}

#[test]
fn a_rise_of_1_ms_per_cycle_on_200_does_not_pass_in_30_noisy_cycles() {
    for seed in 0..100 {
        let rise = Growth::Trend(TYPICAL_MS / 200.0);
        assert_ne!(outcome(Noise::Normal(0.1), rise, 30, seed), Outcome::Flat);
    }
}

#[test]
fn a_step_of_ten_times_in_the_last_14_of_300_cycles_is_rising() {
    for seed in 0..100 {
        for noise in [Noise::Normal(0.1), Noise::Recorded(WITH_TICKS)] {
            assert_eq!(
                outcome(noise, Growth::Step(286, 10.0), 300, seed),
                Outcome::Rising
            );
        }
    }
}

#[test]
fn every_third_cycle_drifting_by_1_ms_per_cycle_on_200_is_rising() {
    for seed in 0..100 {
        let third = Growth::Third(TYPICAL_MS / 200.0);
        assert_eq!(
            outcome(Noise::Normal(0.1), third, 300, seed),
            Outcome::Rising
        );
    }
}

#[test]
fn a_warm_up_does_not_hide_a_later_rise() {
    for until in [10, 30, 100] {
        let later = Growth::WarmUp(until, 1.5, 200, 1.4);
        let found = |seed| outcome(Noise::Normal(0.1), later, 300, seed);
        let rising = (0..100).filter(|seed| found(*seed) == Outcome::Rising);
        assert!(rising.count() >= 80, "{until} cycles");
        assert!((0..100).all(|seed| found(seed) != Outcome::Flat));
    }
}

#[test]
fn a_tail_that_grows_in_frequency_or_in_size_breaks_its_rule() {
    let more = judged(&series(
        Noise::Recorded(WITH_TICKS),
        Growth::Tail(0.4),
        300,
        1,
    ));
    assert_eq!(rule(&more, "tail").outcome, Outcome::Rising, "{more:?}");
    let slower: Vec<f64> = series(Noise::Recorded(WITH_TICKS), Growth::None, 300, 1)
        .into_iter()
        .enumerate()
        .map(|(index, ms)| {
            if index % 5 == 4 {
                ms * (1.5 + as_float(index) / 40.0)
            } else {
                ms
            }
        })
        .collect();
    let slower = judged(&slower);
    assert_eq!(rule(&slower, "tail").outcome, Outcome::Rising, "{slower:?}");
    assert_ne!(
        rule(&slower, "trend").outcome,
        Outcome::Rising,
        "{slower:?}"
    );
}

#[test]
fn the_reported_bug_is_rising_after_60_cycles() {
    // One more attempt per cycle, each of which costs a pause of 5 % of a resume.
    let bug = Growth::Trend(0.05 * TYPICAL_MS);
    for seed in 0..20 {
        assert_eq!(outcome(Noise::Normal(0.25), bug, 60, seed), Outcome::Rising);
    }
}

/// As real runs do: steeply at first, and two thirds of it in 100 cycles.
#[test]
fn a_guest_that_settles_by_three_percent_is_flat() {
    let settled = Noise::Recorded(WITHOUT_TICKS.after(60));
    let flat = (0..100).filter(|seed| {
        let values = series(settled, Growth::Settles(0.03, 100.0), 600, *seed);
        judge_latencies(&values, Clock::Virtual, 4).flatness.outcome == Outcome::Flat
    });
    let flat = flat.count();
    assert!(flat >= 97, "{flat} of 100");
}

#[test]
fn becoming_faster_is_flat() {
    let faster = Growth::Trend(-0.02);
    assert_eq!(
        outcome(Noise::Recorded(WITH_TICKS), faster, 300, 1),
        Outcome::Flat
    );
}

#[test]
fn a_certain_but_tiny_rise_is_flat() {
    let tiny = judged(&series(Noise::Normal(0.001), Growth::Trend(0.002), 300, 1));
    assert!(tiny.rise_lower_percent.unwrap() > 0.0);
    assert_eq!(tiny.outcome, Outcome::Flat, "{}", tiny.reason);
}

#[test]
fn a_constant_series_is_flat() {
    assert_eq!(judged(&[5.0; 300]).outcome, Outcome::Flat);
}

#[test]
fn the_bound_is_a_rate_in_percent_and_in_milliseconds() {
    let bound = judged(&series(Noise::Recorded(WITH_TICKS), Growth::None, 600, 1))
        .bound
        .unwrap();
    assert!((bound.percent - 10.0).abs() < 1e-9);
    assert!((bound.ms - 2.92).abs() < 0.05, "{bound:?}");
    assert!((bound.ms_in_10000_cycles - 48.6).abs() < 1.0, "{bound:?}");
}

/// How many of 100 runs are found to rise by their trend. Each is flat noise and a rise of 300 cycles,
/// in percent of the median over the run, which the rise itself lifts by half of it.
fn found_of_100(noise: Noise, seed_and_rise_percent: impl Fn(u64) -> (u64, f64)) -> usize {
    (0..100)
        .filter(|number| {
            let (seed, percent) = seed_and_rise_percent(*number);
            let share = percent / 100.0;
            let per_cycle = noise.typical_ms() * share / (1.0 - share / 2.0) / 300.0;
            let rising = series(noise, Growth::Trend(per_cycle), 300, seed);
            rule(&judged(&rising), "trend").outcome == Outcome::Rising
        })
        .count()
}

fn detectable_percent(noise: Noise, seed: u64) -> f64 {
    let flat = judged(&series(noise, Growth::None, 300, seed));
    flat.detectable_rise_percent.unwrap()
}

#[test]
fn the_stated_detectable_rise_is_found_in_nine_of_ten() {
    let recorded = Noise::Recorded(WITH_TICKS);
    for noise in [recorded, Noise::Normal(0.05), Noise::Normal(0.1)] {
        let all: f64 = (0..100).map(|seed| detectable_percent(noise, seed)).sum();
        let found = found_of_100(noise, |number| (1000 + number, all / 100.0));
        assert!(found >= 90, "{noise:?}: {found} of 100");
    }
}

/// Where runs differ in how far their noise wanders, each states a rise of its own, and that rise is
/// looked for in the same noise.
#[test]
fn nine_of_ten_runs_would_have_found_the_rise_that_they_state() {
    for noise in [
        Noise::Recorded(WITH_TICKS),
        Noise::Recorded(WITHOUT_TICKS),
        Noise::Normal(0.05),
        Noise::Normal(0.1),
    ] {
        let found = found_of_100(noise, |seed| (seed, detectable_percent(noise, seed)));
        assert!(found >= 90, "{noise:?}: {found} of 100");
    }
}

#[test]
fn an_undecided_run_says_how_many_cycles_its_noise_asks_for() {
    let noisy = judged(&series(Noise::Normal(0.25), Growth::None, 300, 3));
    assert_eq!(noisy.outcome, Outcome::Undecided, "{}", noisy.reason);
    let needed = usize::try_from(noisy.cycles_needed.unwrap()).unwrap();
    assert!((400..5000).contains(&needed), "{needed}");
    assert!(noisy.reason.contains(&format!("about {needed} cycles")));
    let enough = judged(&series(Noise::Normal(0.25), Growth::None, needed, 3));
    assert_eq!(enough.outcome, Outcome::Flat, "{needed}: {}", enough.reason);
}

#[test]
fn a_short_flat_run_says_what_it_does_not_exclude() {
    let values = series(Noise::Recorded(WITHOUT_TICKS), Growth::None, 300, 1);
    let short = judged(&values[..60]);
    assert_eq!(short.outcome, Outcome::Flat, "{}", short.reason);
    let upper = short.rise_upper_percent.unwrap();
    let bound = short.bound.unwrap();
    assert!(0.0 < upper && upper < 5.0, "{upper}");
    assert!((bound.percent_in_10000_cycles - 5.0 * 10_000.0 / 60.0).abs() < 1e-9);
    let rate = three_digits(5.0 * upper);
    let open = format!("so few cycles do not exclude a rise of {rate} % per 300 cycles");
    assert!(short.reason.contains(&open), "{}", short.reason);
    let long = judged(&values);
    assert_eq!(long.outcome, Outcome::Flat, "{}", long.reason);
    assert!(!long.reason.contains("exclude"), "{}", long.reason);
}

#[test]
fn later_looks_ask_for_more() {
    let values = series(Noise::Normal(0.05), Growth::None, 300, 1);
    let at = |look| judge_latencies(&values, Clock::Real, look).flatness;
    let width = |one: &Flatness| one.rise_upper_percent.unwrap() - one.rise_lower_percent.unwrap();
    assert!(width(&at(3)) > width(&at(1)));
}

fn cycle(number: u32, resume_ms: f64, descriptors: u64) -> Cycle {
    Cycle {
        cycle: number,
        suspend_ms: 5.0,
        resume_ms,
        suspend_phases_ms: Phases::default(),
        resume_phases_ms: Phases::default(),
        readiness: vec![Attempt {
            local_port: None,
            outcome: AttemptOutcome::Ok,
            ms: 1.0,
        }],
        guest_open_vsocks: None,
        image_bytes_written: None,
        resources: Resources::from_iter([("vmm_descriptors", descriptors)]),
    }
}

fn run(descriptors: impl Fn(u32) -> u64) -> Vec<Cycle> {
    let values = series(Noise::Recorded(WITH_TICKS), Growth::None, 300, 5);
    (1..)
        .zip(values)
        .map(|(number, ms)| cycle(number, ms, descriptors(number)))
        .collect()
}

#[test]
fn a_leak_that_latency_does_not_show_is_rising() {
    let leak = judge(
        &run(|number| 20 + u64::from(number)),
        None,
        Clock::Virtual,
        &[],
    )
    .flatness;
    assert_eq!(leak.outcome, Outcome::Rising);
    assert!(
        leak.reason.starts_with("vmm descriptors goes from"),
        "{}",
        leak.reason
    );
    let rule = leak.rules.last().unwrap();
    assert_eq!(
        (rule.series.as_str(), rule.unit),
        ("vmm_descriptors", Unit::Count)
    );
    let none = judge(&run(|_| 20), None, Clock::Virtual, &[]).flatness;
    assert_eq!(none.outcome, Outcome::Flat, "{}", none.reason);
    assert_eq!(none.rules.len(), 5);
    assert_eq!(none.looks, [300]);
}

#[test]
fn too_few_cycles_give_no_verdict() {
    let few = judged(&series(
        Noise::Normal(0.01),
        Growth::None,
        MIN_CYCLES - 1,
        1,
    ));
    assert_eq!(few.outcome, Outcome::Undecided);
    assert!(few.rules.is_empty());
    assert_eq!(
        few.reason,
        "too few cycles for a verdict: 29, at least 30 are needed"
    );
    assert_eq!(judged(&[]).outcome, Outcome::Undecided);
}

#[test]
fn latencies_of_zero_give_no_verdict() {
    assert_eq!(judged(&[0.0; 40]).outcome, Outcome::Undecided);
}

#[test]
fn a_failed_check_is_the_reason_and_never_flat() {
    let failed = FailedCheck {
        cycle: 7,
        check: "boot_id".to_owned(),
        message: "the guest rebooted".to_owned(),
    };
    let judged = |cycles: &[Cycle]| judge(cycles, Some(&failed), Clock::Real, &[]).flatness;
    let flat = judged(&run(|_| 20));
    assert_eq!(flat.outcome, Outcome::Undecided);
    assert_eq!(flat.reason, "cycle 7: the guest rebooted");
    let leak = judged(&run(|number| 20 + u64::from(number)));
    assert_eq!(leak.outcome, Outcome::Rising);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn figures_of_usable_durations_are_finite(
        values in prop::collection::vec(prop_oneof![Just(0.0), 0.0..100.0f64, 0.0..=1e9f64], 30..90),
    ) {
        for rule in judged(&values).rules {
            for figure in [rule.value, rule.lower, rule.upper, rule.bound] {
                prop_assert!(figure.is_finite(), "{rule:?}");
            }
        }
    }
}

#[test]
fn ten_thousand_cycles_are_judged() {
    let values = series(Noise::Recorded(WITH_TICKS), Growth::None, 10_000, 1);
    assert_eq!(judged(&values).outcome, Outcome::Flat);
}
