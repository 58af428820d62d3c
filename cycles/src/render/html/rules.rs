//! How the verdict was reached: every rule on resume latency, with its interval against its bound.

use super::text::{Text, ms, sentence};
use crate::judge::rules_in_words;
use crate::record::{Clock, Flatness, Outcome, Rule};
use crate::render::figures::rule_figure;

/// The section with the rules on latency.
pub(super) fn rules(flatness: &Flatness, clock: Clock) -> String {
    let on_latency: Vec<&Rule> = flatness
        .rules
        .iter()
        .filter(|rule| rule.series == "resume")
        .collect();
    let cards: String = if on_latency.is_empty() {
        rules_in_words()
            .iter()
            .map(|requirement| {
                format!(
                    r#"<li class="rule"><p>Not applied: {}.</p></li>"#,
                    Text(requirement)
                )
            })
            .collect()
    } else {
        on_latency.into_iter().map(rule).collect()
    };
    format!(
        r#"<section aria-labelledby="how"><h2 id="how">How the verdict was reached</h2><p class="note">Each rule makes an interval of what it found and compares it with its bound. Below the bound is flat, above it is rising, across it is undecided. A run is flat if all rules are, and rising if one is.</p>{}<ol class="rules">{cards}</ol></section>"#,
        in_figures(flatness, clock),
    )
}

/// The rise, its bound and what would have been found, over the run and over 10,000 cycles.
fn in_figures(flatness: &Flatness, clock: Clock) -> String {
    let (Some(bound), Some(detectable)) = (flatness.bound, flatness.detectable_rise_percent) else {
        return String::new();
    };
    let unit = clock.unit();
    let per_percent = bound.ms / bound.percent;
    let to_10000 = bound.percent_in_10000_cycles / bound.percent;
    let row = |name: &str, percent: Option<f64>| {
        let cell = percent.map_or_else(
            || "<td>-</td><td>-</td>".to_owned(),
            |percent| {
                format!(
                    "<td>{percent:+.1} % <small>{} {unit}</small></td><td>{:+.0} % <small>{} {unit}</small></td>",
                    signed_ms(percent * per_percent),
                    percent * to_10000,
                    signed_ms(percent * per_percent * to_10000),
                )
            },
        );
        format!(r#"<tr><th scope="row">{name}</th>{cell}</tr>"#)
    };
    format!(
        r#"<div class="scroll"><table class="rise"><thead><tr><th scope="col">Rise of resume latency</th><th scope="col">over the run</th><th scope="col">at that rate over 10,000 cycles</th></tr></thead><tbody>{}{}{}{}{}</tbody></table></div>"#,
        row("found", flatness.rise_percent),
        row("lower end of its interval", flatness.rise_lower_percent),
        row("upper end of its interval", flatness.rise_upper_percent),
        row("bound", Some(bound.percent)),
        row(
            "smallest that would have been found in 9 of 10",
            Some(detectable)
        ),
    )
}

fn signed_ms(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "+" };
    format!("{sign}{}", ms(value.abs()))
}

/// The class of an outcome, which decides its colour.
pub(super) fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Flat => "holds",
        Outcome::Rising => "broken",
        Outcome::Undecided => "undecided",
    }
}

fn rule(rule: &Rule) -> String {
    let title = match rule.name.as_str() {
        "trend" => "No slow rise",
        "step" => "No step",
        "subset" => "No rise of a part",
        "tail" => "No growing tail",
        other => other,
    };
    format!(
        r#"<li class="rule {}"><h3>{} <span class="chip">{}</span></h3>{}<p class="found">{}.</p><p class="requirement">Rule: {}.</p></li>"#,
        class(rule.outcome),
        Text(title),
        rule.outcome.name(),
        interval(rule),
        Text(&sentence(&rule.found)),
        Text(&rule.requirement),
    )
}

/// A track with the interval, its middle and the bound. It begins left of zero.
fn interval(rule: &Rule) -> String {
    let reach = [rule.upper.abs(), rule.lower.abs(), rule.value.abs()]
        .into_iter()
        // An interval that reaches far beyond the bound is cut off.
        .fold(rule.bound * 1.5, |reach, end| {
            reach.max(end.min(rule.bound * 6.0))
        });
    let reach = if reach > 0.0 { reach * 1.08 } else { 1.0 };
    let percent = |value: f64| (50.0 + 50.0 * value / reach).clamp(0.0, 100.0);
    let text = |value: f64| Text(&rule_figure(value, rule.unit)).to_string();
    let (lower, upper) = (percent(rule.lower), percent(rule.upper));
    format!(
        r#"<div class="interval" role="img" aria-label="{value}, interval {low} to {high}, bound {bound}"><i class="allowed" style="width:{at_bound:.1}%"></i><i class="zero" style="left:50%"></i><i class="span" style="left:{lower:.1}%;width:{width:.1}%"></i><i class="bound" style="left:{at_bound:.1}%"></i><i class="value" style="left:{middle:.1}%"></i></div><p class="gauge-text"><span><b>{value}</b> ({low} to {high})</span><span>bound <b>{bound}</b></span></p>"#,
        value = text(rule.value),
        low = text(rule.lower),
        high = text(rule.upper),
        bound = text(rule.bound),
        at_bound = percent(rule.bound),
        middle = percent(rule.value),
        width = (upper - lower).max(0.4),
    )
}
