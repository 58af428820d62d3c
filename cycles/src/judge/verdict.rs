//! The verdict: does anything grow from cycle to cycle?
//!
//! It has three outcomes. Each rule makes an interval of what it measures and compares it with a
//! bound: *flat* if the upper end is below it, *rising* if the lower end is above it, *undecided*
//! otherwise. A run is rising if one rule says so, and flat only if all do.
//!
//! On resume latency there are four rules (`rules`): the trend, whose bound is a rate, 5 % of the
//! median per 300 cycles; a step that stays; a rise of only a third of the cycles; slow resumes that
//! become more frequent. On each resource there is one (`resources`). A series that becomes faster
//! breaks none.
//!
//! What is known of the noise comes from the run itself, including how far it wanders: noise with
//! correlated neighbours makes the intervals wider (`statistics::local_level`). A run may be judged
//! several times while it goes on (`looks`).
//!
//! A run of fewer than 300 cycles may show all the growth that is allowed in 300. It excludes less,
//! and a verdict of *flat* says how much.
//!
//! How often these rules err is stated in one table, over noise, growth and length, in
//! `tests/table.rs`. The tests reproduce it, and docs/measuring-verdict.md shows it.

use super::looks::Chances;
use super::resources;
use super::rules::{BOUND_CYCLES, Series, Trend, others, requirements, trend};
use crate::numbers::three_digits;
use crate::record::{Clock, Cycle, FailedCheck, Flatness, MAX_CYCLES, Outcome, Rule};
use crate::statistics::{as_float, decile_medians, median};

/// The fewest cycles for a verdict. The noise of fewer says nothing about how it wanders.
pub const MIN_CYCLES: usize = 30;

/// A verdict and what plots show of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The part that goes into the report.
    pub flatness: Flatness,
    /// The trend as a line.
    pub line: Option<Line>,
}

/// A straight line through resume latencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// Milliseconds per cycle.
    pub slope: f64,
    /// Where it would be at cycle 0: it goes through the medians of latencies and cycles after the
    /// warm-up.
    pub intercept: f64,
    /// The first cycle after the warm-up, from 1.
    pub from_cycle: usize,
}

/// Judges the resume latencies and the resources of `cycles`, whose durations are of `clock`.
///
/// `looks` are the numbers of cycles after which the run was judged, this time included; an empty
/// list means once. A failed check leaves a run undecided that is not rising: it did not complete.
pub fn judge(
    cycles: &[Cycle],
    failed_check: Option<&FailedCheck>,
    clock: Clock,
    looks: &[u32],
) -> Judgement {
    let resume_ms: Vec<f64> = cycles.iter().map(|cycle| cycle.resume_ms).collect();
    let mut judgement = judge_latencies(&resume_ms, clock, looks.len().max(1));
    let flatness = &mut judgement.flatness;
    flatness.looks = if looks.is_empty() {
        vec![u32::try_from(cycles.len()).unwrap_or(MAX_CYCLES)]
    } else {
        looks.to_vec()
    };
    if !flatness.rules.is_empty() {
        flatness.rules.extend(resources::rules(cycles, MIN_CYCLES));
        conclude(flatness, cycles.len());
    }
    if let Some(failed) = failed_check {
        if flatness.outcome == Outcome::Flat {
            flatness.outcome = Outcome::Undecided;
        }
        flatness.reason = match failed.cycle {
            0 => failed.message.clone(),
            cycle => format!("cycle {cycle}: {}", failed.message),
        };
    }
    judgement
}

/// Judges latencies alone, at the look with the number `look`, from 1.
pub(crate) fn judge_latencies(resume_ms: &[f64], clock: Clock, look: usize) -> Judgement {
    let chances = Chances::at_look(look);
    let nothing = |reason: &str| Judgement {
        flatness: Flatness::undecided(reason),
        line: None,
    };
    if resume_ms.len() < MIN_CYCLES {
        return nothing(&too_few(resume_ms.len()));
    }
    let judged = Series::of(resume_ms, chances)
        .and_then(|series| trend(&series, chances).map(|trend| (series, trend)));
    let Some((series, trend)) = judged else {
        return nothing("latencies of zero cannot be judged");
    };
    let mut rules = vec![trend.rule(resume_ms.len(), clock.unit())];
    rules.extend(others(&series, chances));
    let mut flatness = Flatness {
        rise_percent: Some(trend.rise.middle),
        rise_lower_percent: Some(trend.rise.lower),
        rise_upper_percent: Some(trend.rise.upper),
        detectable_rise_percent: Some(trend.detectable),
        bound: Some(trend.bound),
        slope_ms_per_cycle: Some(trend.slope_ms_per_cycle),
        ci95: Some(trend.ci95),
        last_to_first_decile_ratio: decile_medians(resume_ms).and_then(ratio),
        cycles_needed: cycles_needed(resume_ms.len(), &trend),
        rules,
        ..Flatness::undecided("")
    };
    conclude(&mut flatness, resume_ms.len());
    Judgement {
        flatness,
        line: line(resume_ms, &trend),
    }
}

/// The trend through what it was judged by.
fn line(resume_ms: &[f64], trend: &Trend) -> Option<Line> {
    let from_cycle = trend.warm_up + 1;
    let middle_cycle = f64::midpoint(as_float(from_cycle), as_float(resume_ms.len()));
    let middle_ms = median(resume_ms.get(trend.warm_up..)?)?;
    Some(Line {
        slope: trend.slope_ms_per_cycle,
        intercept: middle_ms - trend.slope_ms_per_cycle * middle_cycle,
        from_cycle,
    })
}

/// Every rule on latency, for people.
pub fn rules_in_words() -> [String; 4] {
    requirements()
}

/// Derives outcome and reason from the rules, for a run of `count` cycles.
fn conclude(flatness: &mut Flatness, count: usize) {
    flatness.outcome = Outcome::of_all(flatness.rules.iter().map(|rule| rule.outcome));
    let told: Vec<&Rule> = match flatness.outcome {
        Outcome::Flat => flatness.rules.iter().take(1).collect(),
        outcome => {
            let told = flatness.rules.iter();
            told.filter(|rule| rule.outcome == outcome).collect()
        }
    };
    let found: Vec<&str> = told.iter().map(|rule| rule.found.as_str()).collect();
    let found = found.join("; ");
    let trend_is_undecided = told.iter().any(|rule| rule.name == "trend");
    flatness.reason = match flatness.outcome {
        Outcome::Flat => format!(
            "all {} rules hold: {found}{}",
            flatness.rules.len(),
            not_excluded(flatness, count),
        ),
        Outcome::Rising => found,
        Outcome::Undecided => match flatness.cycles_needed.filter(|_| trend_is_undecided) {
            Some(cycles) => format!("{found}; the noise asks for about {cycles} cycles"),
            None => found,
        },
    };
    if flatness.outcome != Outcome::Undecided {
        flatness.cycles_needed = None;
    }
}

/// What a flat run that is too short for the bounds per 300 cycles leaves open.
fn not_excluded(flatness: &Flatness, count: usize) -> String {
    match flatness.rise_upper_percent {
        Some(upper) if as_float(count) < BOUND_CYCLES && upper > 0.0 => format!(
            "; so few cycles do not exclude a rise of {} % per {BOUND_CYCLES} cycles",
            three_digits(upper * BOUND_CYCLES / as_float(count)),
        ),
        _ => String::new(),
    }
}

/// About how many cycles would decide: the width of the interval falls with their square root, and
/// the bound grows with them from 300 on. Rounded up to a hundred.
fn cycles_needed(count: usize, trend: &Trend) -> Option<u32> {
    let too_wide = (trend.width / trend.bound.percent).max(1.0);
    let narrow_enough = as_float(count) * too_wide.powi(2);
    let long = as_float(count).max(BOUND_CYCLES);
    let cycles = if narrow_enough <= long {
        narrow_enough
    } else {
        long * (narrow_enough / long).cbrt()
    };
    let hundreds = (cycles / 100.0).ceil() + 1.0;
    let most = f64::from(u32::MAX / 100);
    // Between one and the largest u32 by now.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded above"
    )]
    hundreds
        .is_finite()
        .then(|| 100 * hundreds.clamp(1.0, most) as u32)
}

fn ratio((first, last): (f64, f64)) -> Option<f64> {
    // With a first decile of zero the ratio is infinite, which JSON cannot hold.
    Some(last / first).filter(|ratio| ratio.is_finite())
}

fn too_few(count: usize) -> String {
    format!("too few cycles for a verdict: {count}, at least {MIN_CYCLES} are needed")
}

#[cfg(test)]
mod tests;
