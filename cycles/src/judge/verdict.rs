//! The verdict: is a series of resume latencies flat?
//!
//! There are two rules, and both must hold.
//!
//! The *slope rule* finds a slow, steady rise. It is broken if the series rises over the whole run
//! by more than [`RISE_BOUND_PERCENT`] of the median, beyond chance: even the lower end of the
//! slope's 99.9 % confidence interval must predict that rise. (Reports show the usual 95 %
//! interval. A matrix has a dozen cells, each of which may raise a false alarm, so the rule asks
//! for more.)
//!
//! The *decile rule* finds a step, or a rise at the end. It is broken if the median of the last
//! tenth exceeds [`DECILE_RATIO_BOUND`] times that of the first. In a run so noisy that medians of
//! so few cycles differ by more than that, the bound is one plus four standard errors of the ratio.
//!
//! A series that becomes faster breaks neither.
//!
//! False alarms in 1,000 flat series of each kind, as simulated by the tests below: none with
//! normal noise of 5 % of the median; with noise of 25 %, 1 with 300 cycles, 3 with 60 and 2 with
//! 30; 2 with log-normal noise of 40 %; none with a tenth of all values five times too slow; 1
//! where neighbours are correlated by 0.5. A rise of 0.2 % per cycle over 300 cycles is found in
//! all of 1,000 series with 5 % noise and in all with 25 %; a step of 40 % is found in all, wherever
//! it is.

use crate::numbers::three_digits;
use crate::record::{Clock, FailedCheck, Flatness};
use crate::statistics::{
    Slope, as_float, decile_length, decile_medians, median, scatter, theil_sen_by_cycle,
};

/// The fewest cycles for a verdict. A tenth of them is three, and the median of three withstands
/// one outlier.
pub const MIN_CYCLES: usize = 30;

/// The largest rise over the run that counts as flat, in percent of the median.
pub const RISE_BOUND_PERCENT: f64 = 5.0;

/// The largest ratio of the last tenth's median to the first tenth's that counts as flat.
pub const DECILE_RATIO_BOUND: f64 = 1.25;

/// Standard errors of the decile ratio that are attributed to chance.
const CHANCE_STANDARD_ERRORS: f64 = 4.0;

/// A verdict and how it was reached.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The part that goes into the report.
    pub flatness: Flatness,
    /// Each rule as it was applied; none if the series could not be judged.
    pub rules: Vec<Rule>,
    /// The line that the slope rule is applied to.
    pub slope: Option<Slope>,
}

/// One rule as applied to a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Name for titles.
    pub name: &'static str,
    /// What must be true, in words, with the bound.
    pub requirement: String,
    /// What was found, in words.
    pub found: String,
    /// The figure that is compared with the bound.
    pub value: f64,
    /// The largest figure with which the rule holds.
    pub bound: f64,
    /// Whether the rule holds.
    pub holds: bool,
}

/// Judges resume latencies, durations of `clock`, in the order of their cycles.
///
/// A run with a failed check is not flat, whatever its figures: it did not complete.
pub fn judge(resume_ms: &[f64], failed_check: Option<&FailedCheck>, clock: Clock) -> Judgement {
    let slope = theil_sen_by_cycle(resume_ms);
    let deciles = decile_medians(resume_ms);
    let rules = applied_rules(resume_ms, slope, deciles, clock.unit());
    let broken: Vec<&Rule> = rules.iter().filter(|rule| !rule.holds).collect();

    let flat = failed_check.is_none() && !rules.is_empty() && broken.is_empty();
    let reason = match failed_check {
        Some(failed) if failed.cycle == 0 => failed.message.clone(),
        Some(failed) => format!("cycle {}: {}", failed.cycle, failed.message),
        None if resume_ms.len() < MIN_CYCLES => too_few(resume_ms.len()),
        None if rules.is_empty() => "latencies of zero cannot be judged".to_owned(),
        None if flat => flat_reason(&rules),
        None => broken
            .iter()
            .map(|rule| rule.found.as_str())
            .collect::<Vec<_>>()
            .join("; "),
    };
    let flatness = Flatness {
        slope_ms_per_cycle: slope.map(|line| line.slope),
        ci95: slope.map(|line| [line.interval.0, line.interval.1]),
        last_to_first_decile_ratio: deciles.and_then(ratio),
        flat,
        reason,
    };
    Judgement {
        flatness,
        rules,
        slope,
    }
}

/// Both rules with their usual bounds, for people.
pub fn rules_in_words() -> [String; 2] {
    [slope_requirement(), decile_requirement(DECILE_RATIO_BOUND)]
}

fn applied_rules(
    values: &[f64],
    slope: Option<Slope>,
    deciles: Option<(f64, f64)>,
    unit: &str,
) -> Vec<Rule> {
    let (Some(line), Some(deciles), Some(typical)) = (slope, deciles, median(values)) else {
        return Vec::new();
    };
    let Some(ratio) = ratio(deciles) else {
        return Vec::new();
    };
    if values.len() < MIN_CYCLES || typical <= 0.0 {
        return Vec::new();
    }
    vec![
        slope_rule(values, line, typical, unit),
        decile_rule(values, deciles, ratio, typical, unit),
    ]
}

fn slope_rule(values: &[f64], line: Slope, typical_ms: f64, unit: &str) -> Rule {
    let count = values.len();
    let percent_per_slope = 100.0 * as_float(count - 1) / typical_ms;
    let [low, high] = [line.interval.0, line.interval.1].map(|end| end * percent_per_slope);
    let certain = line.certain_lower * percent_per_slope;
    let found = format!(
        "the slope of {} {unit} per cycle is {:+.1} % of the median over {count} cycles (95 % \
         interval {low:+.1} to {high:+.1} %, lower end of the 99.9 % interval {certain:+.1} %)",
        signed(line.slope),
        line.slope * percent_per_slope,
    );
    Rule {
        name: "slope",
        requirement: slope_requirement(),
        found,
        value: certain,
        bound: RISE_BOUND_PERCENT,
        holds: certain <= RISE_BOUND_PERCENT,
    }
}

fn slope_requirement() -> String {
    format!(
        "the lower end of the 99.9 % confidence interval of the Theil-Sen slope must predict a \
         rise of at most {RISE_BOUND_PERCENT} % of the median over the whole run"
    )
}

fn decile_rule(
    values: &[f64],
    (first, last): (f64, f64),
    ratio: f64,
    typical_ms: f64,
    unit: &str,
) -> Rule {
    let count = decile_length(values.len());
    let bound = decile_bound(values, count, typical_ms);
    let found = format!(
        "the median of the last {count} cycles is {} {unit}, that of the first {count} is {} {unit}: \
         ratio {ratio:.3}",
        three_digits(last),
        three_digits(first),
    );
    Rule {
        name: "deciles",
        requirement: decile_requirement(bound),
        found,
        value: ratio,
        bound,
        holds: ratio <= bound,
    }
}

/// A median of k values scatters by 1.2533 (the square root of π/2) times their standard
/// deviation over √k; the ratio of two such medians by √2 times that.
fn decile_bound(values: &[f64], count: usize, typical_ms: f64) -> f64 {
    let relative_scatter = scatter(values).unwrap_or(0.0) / typical_ms;
    let standard_error = relative_scatter * (std::f64::consts::PI / as_float(count)).sqrt();
    DECILE_RATIO_BOUND.max(1.0 + CHANCE_STANDARD_ERRORS * standard_error)
}

fn decile_requirement(bound: f64) -> String {
    let usual = format!(
        "the median of the last tenth of the cycles must be at most {DECILE_RATIO_BOUND} times \
         that of the first tenth"
    );
    if bound > DECILE_RATIO_BOUND {
        return format!(
            "{usual}; in this run the bound is {bound:.2}, because its noise alone can cause that \
             ratio ({CHANCE_STANDARD_ERRORS} standard errors)"
        );
    }
    usual
}

fn ratio((first, last): (f64, f64)) -> Option<f64> {
    // With a first decile of zero the ratio is infinite, which JSON cannot hold.
    Some(last / first).filter(|ratio| ratio.is_finite())
}

fn too_few(count: usize) -> String {
    format!("too few cycles for a verdict: {count}, at least {MIN_CYCLES} are needed")
}

fn flat_reason(rules: &[Rule]) -> String {
    let found: Vec<&str> = rules.iter().map(|rule| rule.found.as_str()).collect();
    format!("both rules hold: {}", found.join("; "))
}

/// A signed number with about three significant digits.
fn signed(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 1.0 {
        1
    } else {
        3
    };
    // Without this, a rounded zero would have a sign.
    let text = format!("{value:+.digits$}");
    if text.trim_start_matches(['+', '-', '0', '.']).is_empty() {
        "0".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests;
