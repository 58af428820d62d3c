//! The verdict: is a series of resume latencies flat?
//!
//! Two rules, and both must hold. The *slope rule* sees a slow, steady rise: it is broken if a
//! rise over the whole run of more than [`RISE_BOUND_PERCENT`] of the median is beyond chance,
//! which means that even the lower end of the slope's 99.9 % interval predicts it. (Reports show
//! the usual 95 % interval; a matrix has two dozen cells, each of which may raise a false alarm,
//! so the rule asks for more.) The *decile rule* sees a step, or a rise at the end: the median of
//! the last tenth must not exceed [`DECILE_RATIO_BOUND`] times that of the first, or, where a run
//! is so noisy that medians of so few cycles scatter by more, one plus four standard errors of
//! that ratio. Becoming faster is never held against a series.
//!
//! False alarms, as simulated by the tests below in 1,000 flat series of each kind: none with
//! normal noise of 5 % of the median; with noise of 25 %, 1 with 300 cycles, 3 with 60 and 2 with
//! 30; 2 with log-normal noise of 40 %; none with a tenth of all values five times too slow; 1
//! where neighbours are correlated by 0.5. A rise of 0.2 % per cycle over 300 cycles is found in
//! all of 1,000 series with 5 % noise and all with 25 %, a step of 40 % in all wherever it is.

use crate::record::{FailedCheck, Flatness};
use crate::statistics::{
    Slope, as_float, decile_length, decile_medians, median, scatter, theil_sen_by_cycle,
};

/// Below this many cycles there is no verdict: a tenth is then three, of which one may be an
/// outlier without moving their median.
pub const MIN_CYCLES: usize = 30;

/// Rise over the run, in percent of the median, that still counts as flat.
pub const RISE_BOUND_PERCENT: f64 = 5.0;

/// Ratio of the last decile's median to the first's that still counts as flat.
pub const DECILE_RATIO_BOUND: f64 = 1.25;

/// Standard errors of the decile ratio that are put down to chance.
const CHANCE_STANDARD_ERRORS: f64 = 4.0;

/// A verdict and how it was reached.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// What goes into the report.
    pub flatness: Flatness,
    /// Each rule as it was applied; empty where there were too few cycles to apply any.
    pub rules: Vec<Rule>,
    /// The line behind the slope rule.
    pub slope: Option<Slope>,
}

/// One rule as applied to a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Name for titles.
    pub name: &'static str,
    /// What it demands, in words, with its bound.
    pub demand: String,
    /// What was found, in words.
    pub found: String,
    /// The figure compared.
    pub value: f64,
    /// What it may be at most.
    pub bound: f64,
    /// Whether the rule holds.
    pub holds: bool,
}

/// Judges resume latencies in the order of their cycles.
///
/// A failed check makes the run not flat, whatever its figures: they are from a run that ended.
pub fn judge(resume_ms: &[f64], failed_check: Option<&FailedCheck>) -> Judgement {
    let slope = theil_sen_by_cycle(resume_ms);
    let deciles = decile_medians(resume_ms);
    let rules = applied_rules(resume_ms, slope, deciles);
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

/// Both rules with their bounds, for people; what no run of its own needs to explain.
pub fn rules_in_words() -> [String; 2] {
    [slope_demand(), decile_demand(DECILE_RATIO_BOUND)]
}

fn applied_rules(values: &[f64], slope: Option<Slope>, deciles: Option<(f64, f64)>) -> Vec<Rule> {
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
        slope_rule(values, line, typical),
        decile_rule(values, deciles, ratio, typical),
    ]
}

fn slope_rule(values: &[f64], line: Slope, typical_ms: f64) -> Rule {
    let count = values.len();
    let percent_per_slope = 100.0 * as_float(count - 1) / typical_ms;
    let [low, high] = [line.interval.0, line.interval.1].map(|end| end * percent_per_slope);
    let certain = line.certain_lower * percent_per_slope;
    let found = format!(
        "the slope of {} ms per cycle is {:+.1} % of the median over {count} cycles (95 % \
         interval {low:+.1} to {high:+.1} %; with 99.9 % confidence at least {certain:+.1} %)",
        signed(line.slope),
        line.slope * percent_per_slope,
    );
    Rule {
        name: "slope",
        demand: slope_demand(),
        found,
        value: certain,
        bound: RISE_BOUND_PERCENT,
        holds: certain <= RISE_BOUND_PERCENT,
    }
}

fn slope_demand() -> String {
    format!(
        "a rise of more than {RISE_BOUND_PERCENT} % of the median over the whole run must not be \
         certain: the lower end of the Theil-Sen slope's 99.9 % interval must not predict it"
    )
}

fn decile_rule(values: &[f64], (first, last): (f64, f64), ratio: f64, typical_ms: f64) -> Rule {
    let count = decile_length(values.len());
    let bound = decile_bound(values, count, typical_ms);
    let found = format!(
        "the last {count} cycles have a median of {} ms, the first {count} of {} ms: ratio {ratio:.3}",
        plain(last),
        plain(first),
    );
    Rule {
        name: "deciles",
        demand: decile_demand(bound),
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

fn decile_demand(bound: f64) -> String {
    let usual = format!(
        "the median of the last tenth of the cycles must be at most {DECILE_RATIO_BOUND} times \
         that of the first tenth"
    );
    if bound > DECILE_RATIO_BOUND {
        return format!(
            "{usual}; this run is so noisy that chance alone can make it {bound:.2} \
             ({CHANCE_STANDARD_ERRORS} standard errors), which is the bound here"
        );
    }
    usual
}

fn ratio((first, last): (f64, f64)) -> Option<f64> {
    // A first decile of zero would make a ratio that JSON cannot hold.
    Some(last / first).filter(|ratio| ratio.is_finite())
}

fn too_few(count: usize) -> String {
    format!("too few cycles for a verdict: {count}, at least {MIN_CYCLES} are needed")
}

fn flat_reason(rules: &[Rule]) -> String {
    let found: Vec<&str> = rules.iter().map(|rule| rule.found.as_str()).collect();
    format!("both rules hold: {}", found.join("; "))
}

/// A signed number with about three digits that count.
fn signed(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 1.0 {
        1
    } else {
        3
    };
    // Rounding must not leave a signed zero.
    let text = format!("{value:+.digits$}");
    if text.trim_start_matches(['+', '-', '0', '.']).is_empty() {
        "0".to_owned()
    } else {
        text
    }
}

fn plain(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests;
