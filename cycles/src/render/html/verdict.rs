//! The head of the page: the verdict, how it was reached, and the main figures.

use super::text::{Text, count, ms, sentence};
use crate::judge::{Judgement, MIN_CYCLES, Rule, rules_in_words};
use crate::record::{Cycle, Report};
use crate::render::figures::median_mib_written;
use crate::statistics::Quantiles;

/// Verdict and reason.
pub(super) fn headline(report: &Report, judgement: &Judgement) -> String {
    let cycles = report.cycles.len();
    let (class, glyph, title) = match (report.flatness.flat, &report.failed_check) {
        (true, _) => (
            "flat",
            "M5 12.5l4.5 4.5L19 7.5",
            "Resume latency stayed flat",
        ),
        (false, Some(_)) => ("not-flat", "M6 6l12 12M18 6L6 18", "The run failed a check"),
        (false, None) if !report.has_run() => (
            "undecided",
            "M12 6v7M12 17.5v.01",
            "Matrix only: no verdict on a run",
        ),
        (false, None) if cycles < MIN_CYCLES => (
            "undecided",
            "M12 6v7M12 17.5v.01",
            "Too few cycles for a verdict",
        ),
        (false, None) if report.is_marked_not_flat() => (
            "not-flat",
            "M6 6l12 12M18 6L6 18",
            "The run does not count as flat",
        ),
        (false, None) => (
            "not-flat",
            "M6 6l12 12M18 6L6 18",
            "Resume latency is not flat",
        ),
    };
    let agrees = report.flatness.flat == judgement.flatness.flat || report.is_marked_not_flat();
    let contradiction = if agrees {
        String::new()
    } else {
        let own = judgement.flatness.in_words();
        format!(
            r#"<p class="warning" role="alert">The verdict in this file does not follow from its cycles. Judged again, they are {own}: {}.</p>"#,
            Text(&judgement.flatness.reason)
        )
    };
    format!(
        r#"<header class="{class}"><p class="kicker">{} &middot; {} &middot; {}{}</p><h1><svg class="glyph" viewBox="0 0 24 24" aria-hidden="true"><path d="{glyph}"/></svg><span>{title}</span></h1><p class="lede">{}</p><p class="reason">{}</p>{contradiction}</header>"#,
        Text(&report.config.subject.name),
        report.host.kvm.in_words(),
        report.clock.in_words(),
        started(&report.config.started_at),
        lede(report),
        reason(report, judgement),
    )
}

/// The reason for the verdict. Of a flat run it is short, since the rules below show the figures.
fn reason(report: &Report, judgement: &Judgement) -> String {
    if report.flatness.flat && judgement.flatness.flat {
        return "Both rules hold.".to_owned();
    }
    format!("{}.", Text(&sentence(&report.flatness.reason)))
}

fn started(started_at: &str) -> String {
    if started_at.is_empty() {
        String::new()
    } else {
        format!(" &middot; {}", Text(started_at))
    }
}

fn lede(report: &Report) -> String {
    let unit = report.clock.unit();
    if !report.has_run() {
        return "The verdict of a matrix is that of the cell with all fixes on, which was not run."
            .to_owned();
    }
    let (done, wanted) = (report.cycles.len(), report.config.cycles);
    let cycles = if usize::try_from(wanted) == Ok(done) {
        format!("{} chained suspend and resume cycles", count(done))
    } else {
        format!(
            "{} of {} chained suspend and resume cycles",
            count(done),
            count(wanted)
        )
    };
    match Quantiles::of(&report.resume_ms()) {
        Some(q) => format!(
            "{cycles}. Half of all resumes took {} {unit} or less, 99 in 100 at most {} {unit}.",
            ms(q.p50),
            ms(q.p99)
        ),
        None => format!("{cycles}."),
    }
}

/// Each rule with its bound, what was found, and a gauge that shows both.
pub(super) fn rules(judgement: &Judgement) -> String {
    let cards: String = if judgement.rules.is_empty() {
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
        judgement.rules.iter().map(rule).collect()
    };
    format!(
        r#"<section aria-labelledby="how"><h2 id="how">How the verdict was reached</h2><p class="note">There are two rules, and both must hold. The first finds a slow, steady rise, the second a step or a rise at the end.</p><ol class="rules">{cards}</ol></section>"#
    )
}

fn rule(rule: &Rule) -> String {
    let (class, word) = if rule.holds {
        ("holds", "holds")
    } else {
        ("broken", "broken")
    };
    format!(
        r#"<li class="rule {class}"><h3>{} <span class="chip">{word}</span></h3>{}<p class="found">{}.</p><p class="requirement">Rule: {}.</p></li>"#,
        if rule.name == "slope" {
            "No slow rise"
        } else {
            "No step"
        },
        gauge(rule),
        Text(&sentence(&rule.found)),
        Text(&rule.requirement),
    )
}

/// A track with the value and the bound: everything to the right of the bound breaks the rule.
fn gauge(rule: &Rule) -> String {
    let is_slope = rule.name == "slope";
    let (start, end) = if is_slope {
        let reach = rule.value.abs().max(rule.bound * 2.0) * 1.15;
        (-reach.min(rule.bound * 4.0), reach)
    } else {
        (rule.value.min(0.5), rule.value.max(rule.bound * 1.4) * 1.1)
    };
    let percent = |value: f64| (100.0 * (value - start) / (end - start)).clamp(0.0, 100.0);
    let text = |value: f64| {
        if is_slope {
            format!("{value:+.1} %")
        } else {
            format!("×{value:.3}")
        }
    };
    let bound_text = if is_slope {
        format!("{} %", rule.bound)
    } else {
        format!("×{:.2}", rule.bound)
    };
    format!(
        r#"<div class="gauge" role="img" aria-label="{what} {found}, at most {bound_text}"><i class="allowed" style="width:{bound:.1}%"></i><i class="bound" style="left:{bound:.1}%"></i><i class="value" style="left:{value:.1}%"></i></div><p class="gauge-text"><span>{what} <b>{found}</b></span><span>at most <b>{bound_text}</b></span></p>"#,
        what = if is_slope {
            "rise, lower end of its 99.9 % interval"
        } else {
            "last to first tenth"
        },
        found = text(rule.value),
        bound = percent(rule.bound),
        value = percent(rule.value),
    )
}

/// The main figures, as tiles.
pub(super) fn tiles(report: &Report) -> String {
    let resume = Quantiles::of(&report.resume_ms());
    let suspend = Quantiles::of(&report.suspend_ms());
    let most = report.cycles.iter().map(Cycle::attempts).max().unwrap_or(0);
    let unit = report.clock.unit();
    let mut tiles = String::new();
    if let (Some(resume), Some(suspend)) = (resume, suspend) {
        tiles.push_str(&tile(
            "resume",
            &ms(resume.p50),
            unit,
            &format!("p99 {} {unit}", ms(resume.p99)),
        ));
        tiles.push_str(&tile(
            "suspend",
            &ms(suspend.p50),
            unit,
            &format!("p99 {} {unit}", ms(suspend.p99)),
        ));
    }
    let attempts = if most == 1 {
        "in every cycle"
    } else {
        "in the worst cycle"
    };
    tiles.push_str(&tile("readiness attempts", &count(most), "", attempts));
    if let (Some(first), Some(last)) = (
        open_vsocks(report.cycles.first()),
        open_vsocks(report.cycles.last()),
    ) {
        let leftover = if last > first {
            format!("{} left over", last - first)
        } else {
            "none left over".to_owned()
        };
        tiles.push_str(&tile(
            "vsock sockets in the guest",
            &format!("{first} → {last}"),
            "",
            &leftover,
        ));
    }
    if let Some(mib) = median_mib_written(&report.cycles) {
        tiles.push_str(&tile("written per suspend", &ms(mib), "MiB", "p50"));
    }
    format!(r#"<dl class="tiles">{tiles}</dl>"#)
}

fn open_vsocks(cycle: Option<&Cycle>) -> Option<u32> {
    cycle.and_then(|cycle| cycle.guest_open_vsocks)
}

fn tile(name: &str, value: &str, unit: &str, note: &str) -> String {
    format!(
        r#"<div><dt>{name}</dt><dd><b>{value}</b> <span>{unit}</span><small>{note}</small></dd></div>"#
    )
}
