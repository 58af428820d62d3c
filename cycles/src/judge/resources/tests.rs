//! Series of resources: constant, oscillating, in plateaus, and leaking.

use super::*;

fn outcome(name: &str, cycles: u32, value: impl Fn(u32) -> u32) -> Outcome {
    let values: Vec<f64> = (1..=cycles).map(|cycle| f64::from(value(cycle))).collect();
    rule(name, &values).unwrap().outcome
}

#[test]
fn a_count_that_stays_or_oscillates_is_flat() {
    assert_eq!(outcome("vmm_threads", 300, |_| 4), Outcome::Flat);
    let oscillates = |cycle| 10 + (cycle * cycle) % 7;
    assert_eq!(outcome("guest_tasks", 300, oscillates), Outcome::Flat);
}

#[test]
fn what_warms_up_in_the_first_cycles_is_flat() {
    let warm = |cycle| if cycle < 20 { cycle } else { 20 };
    assert_eq!(outcome("supervisor_tasks", 300, warm), Outcome::Flat);
}

#[test]
fn one_more_once_is_undecided_in_300_cycles_and_flat_in_600() {
    let once = |cycle| 7 + u32::from(cycle > 140);
    assert_eq!(outcome("vmm_descriptors", 300, once), Outcome::Undecided);
    assert_eq!(outcome("vmm_descriptors", 600, once), Outcome::Flat);
}

#[test]
fn a_leak_of_one_per_cycle_is_rising_after_300_cycles_and_after_60() {
    for cycles in [60, 300] {
        let leak = |cycle| 9 + cycle;
        assert_eq!(
            outcome("guest_init_descriptors", cycles, leak),
            Outcome::Rising
        );
    }
}

#[test]
fn a_leak_of_one_per_100_cycles_is_rising_whenever_it_begins() {
    for phase in 0..100 {
        let leak = |cycle: u32| 9 + (cycle + phase) / 100;
        assert_eq!(
            outcome("guest_init_timers", 300, leak),
            Outcome::Rising,
            "{phase}"
        );
    }
}

#[test]
fn a_leak_shows_although_the_count_oscillates() {
    let leak = |cycle| 10 + (cycle * cycle) % 7 + cycle / 10;
    assert_eq!(outcome("supervisor_tasks", 300, leak), Outcome::Rising);
}

#[test]
fn a_plateau_more_and_page_steps_are_flat() {
    let plateau = |cycle| (2 << 20) + if cycle > 100 { 132 << 10 } else { 0 };
    assert_eq!(
        outcome("guest_init_resident_bytes", 300, plateau),
        Outcome::Flat
    );
    let pages = |cycle| (5 << 20) + 4096 * ((cycle * cycle) % 11);
    assert_eq!(outcome("vmm_anonymous_bytes", 300, pages), Outcome::Flat);
}

/// Recorded: what guest-init settled with in the first 30 cycles of a healthy run.
#[test]
fn a_short_run_may_show_what_300_cycles_may() {
    let settles = |cycle: u32| (232 << 10) + 4096 * (cycle.min(30) / 2);
    assert_eq!(
        outcome("guest_init_anonymous_bytes", 30, settles),
        Outcome::Flat
    );
    let leak = |cycle| (232 << 10) + (64 << 10) * cycle;
    assert_eq!(
        outcome("guest_init_anonymous_bytes", 30, leak),
        Outcome::Rising
    );
    let descriptors = |cycle| 20 + cycle / 3;
    assert_eq!(outcome("vmm_descriptors", 30, descriptors), Outcome::Rising);
    let one_more = |cycle| 20 + cycle / 20;
    assert_eq!(outcome("vmm_descriptors", 30, one_more), Outcome::Undecided);
}

#[test]
fn a_page_leaked_in_each_cycle_is_rising_even_if_it_comes_in_arenas() {
    let leak = |cycle| (2 << 20) + 4096 * cycle;
    assert_eq!(
        outcome("guest_init_anonymous_bytes", 300, leak),
        Outcome::Rising
    );
    let arenas = |cycle| (2 << 20) + (128 << 10) * (cycle / 32);
    assert_eq!(
        outcome("guest_init_anonymous_bytes", 300, arenas),
        Outcome::Rising
    );
}

#[test]
fn what_grows_by_design_is_flat_until_it_grows_faster_or_beyond_its_limit() {
    let designed = |cycle| (8 << 20) + 4096 * cycle;
    assert_eq!(outcome("database_bytes", 300, designed), Outcome::Flat);
    let faster = |cycle| (8 << 20) + (20 << 10) * cycle;
    assert_eq!(outcome("database_bytes", 300, faster), Outcome::Rising);
    let beyond = |_| 65 << 20;
    assert_eq!(outcome("database_bytes", 300, beyond), Outcome::Rising);
}

#[test]
fn amounts_have_units() {
    assert_eq!(amount(-1536.0, Unit::Bytes), "-1.50 KiB");
    assert_eq!(amount(12.0, Unit::Bytes), "12 B");
    assert_eq!(amount(3.0, Unit::Count), "3");
}

/// As good as random, from 0 to `below`.
fn random(cycle: u32, seed: u32, below: u32) -> u32 {
    let mixed = u64::from(cycle) << 32 | u64::from(seed);
    let mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    u32::try_from((mixed >> 33) % u64::from(below)).unwrap()
}

/// The value in a cycle of the series with a seed.
type Value = fn(u32, u32) -> u32;

/// Eight series of each of five kinds, in 100 runs that go on from 300 to 600 cycles while a series
/// is undecided.
#[test]
fn forty_healthy_series_raise_no_alarm_in_100_runs_and_leave_none_undecided() {
    const PAGE: u32 = 4096;
    let kinds: [(&str, Value); 5] = [
        ("vmm_descriptors", |_, seed| 20 + seed % 7),
        ("guest_tasks", |cycle, seed| 40 + random(cycle, seed, 6)),
        ("vmm_resident_bytes", |cycle, seed| {
            (20 << 20) + PAGE * random(cycle, seed, 200)
        }),
        // Settles: ever fewer pages, as allocators and caches do.
        ("guest_init_anonymous_bytes", |cycle, seed| {
            (236 << 10) + PAGE * (30 * cycle / (cycle + 40 + seed % 30))
        }),
        // One arena more at any moment, and pages that come and go.
        ("supervisor_resident_bytes", |cycle, seed| {
            let arena = if cycle > random(0, seed, 600) {
                132 << 10
            } else {
                0
            };
            (9 << 20) + arena + PAGE * random(cycle, seed, 8)
        }),
    ];
    for seed in 0..800 {
        for (name, value) in kinds {
            let judged = |cycles| outcome(name, cycles, |cycle| value(cycle, seed));
            let first = judged(300);
            let last = if first == Outcome::Undecided {
                judged(600)
            } else {
                first
            };
            assert_eq!(last, Outcome::Flat, "{name} {seed}");
        }
    }
}
