//! The head of the page: the verdict, and the main figures.

use super::text::{Text, count, ms, sentence};
use crate::judge::{Judgement, MIN_CYCLES};
use crate::record::{Cycle, Flatness, Outcome, Report};
use crate::render::figures::median_mib_written;
use crate::statistics::Quantiles;

/// Signs that tell outcomes apart without colour: a check, a cross, a question that is open.
const CHECK: &str = "M5 12.5l4.5 4.5L19 7.5";
const CROSS: &str = "M6 6l12 12M18 6L6 18";
const OPEN: &str = "M12 6v7M12 17.5v.01";

/// The verdict that the page shows: that of today's rules if the report's own is of older ones.
pub(super) fn shown<'a>(report: &'a Report, judgement: &'a Judgement) -> &'a Flatness {
    if report.is_outdated() {
        &judgement.flatness
    } else {
        &report.flatness
    }
}

/// Verdict and reason.
pub(super) fn headline(report: &Report, judgement: &Judgement) -> String {
    let flatness = shown(report, judgement);
    let (class, glyph, title) = match (flatness.outcome, &report.failed_check) {
        (_, Some(_)) => ("not-flat", CROSS, "The run failed a check"),
        (Outcome::Flat, None) => ("flat", CHECK, "Nothing grows: resume latency stayed flat"),
        (Outcome::Rising, None) => ("not-flat", CROSS, rising_title(flatness)),
        (Outcome::Undecided, None) if !report.has_run() => {
            ("undecided", OPEN, "Matrix only: no verdict on a run")
        }
        (Outcome::Undecided, None) if report.cycles.len() < MIN_CYCLES => {
            ("undecided", OPEN, "Too few cycles for a verdict")
        }
        (Outcome::Undecided, None) if report.is_marked_undecided() => {
            ("undecided", OPEN, "The run does not count")
        }
        (Outcome::Undecided, None) => (
            "undecided",
            OPEN,
            "Undecided: these cycles do not show whether anything grows",
        ),
    };
    format!(
        r#"<header class="{class}"><p class="kicker">{} &middot; {} &middot; {}{}</p><h1><svg class="glyph" viewBox="0 0 24 24" aria-hidden="true"><path d="{glyph}"/></svg><span>{title}</span></h1><p class="lede">{}</p><p class="reason">{}.</p>{}</header>"#,
        Text(&report.config.subject.name),
        Text(&report.host.kvm_in_words()),
        report.clock.in_words(),
        started(&report.config.started_at),
        lede(report),
        Text(&sentence(&flatness.reason)),
        contradiction(report, judgement),
    )
}

fn rising_title(flatness: &Flatness) -> &'static str {
    let latency = flatness
        .rules
        .iter()
        .any(|rule| rule.series == "resume" && rule.outcome == Outcome::Rising);
    if latency {
        "Resume latency rises"
    } else {
        "Something else than latency grows"
    }
}

/// A warning if the verdict in the file is not what its cycles say.
fn contradiction(report: &Report, judgement: &Judgement) -> String {
    let (own, found) = (&report.flatness, &judgement.flatness);
    if report.is_outdated() || !report.has_run() || report.is_marked_undecided() {
        return String::new();
    }
    if own.outcome == found.outcome {
        return String::new();
    }
    format!(
        r#"<p class="warning" role="alert">The verdict in this file does not follow from its cycles. Judged again, they are {}: {}.</p>"#,
        found.outcome.name(),
        Text(&found.reason)
    )
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
