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
