//! The page as a whole: the order of its sections, and the data that its script shows for one cycle.

use serde_json::{Value, json};

use super::charts::{
    Paint, attempts_plot, attempts_text, painted, phases_plot, resume_plot, suspend_plot,
};
use super::details::{all_cycles, host, peers, phases_tables, scale};
use super::rules::rules;
use super::text::json_for_script;
use super::verdict::{headline, shown, tiles};
use crate::judge::Line;
use crate::record::{Phases, Report};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The contents of `report.html`. The series is judged again: if its cycles contradict the verdict
/// in the report, the page says so.
pub fn report_page(report: &Report) -> String {
    let judgement = report.judged_again();
    let verdict = if report.has_run() {
        shown(report, &judgement).outcome.name()
    } else {
        "matrix"
    };
    let explorer = if report.cycles.is_empty() {
        String::new()
    } else {
        explorer(report, judgement.line)
    };
    let matrix = report
        .matrix
        .as_ref()
        .map(|matrix| super::matrix::section(matrix, report.clock))
        .unwrap_or_default();
    let run = if report.has_run() {
        [
            tiles(report),
            rules(shown(report, &judgement), report.clock),
            explorer,
            super::resources::section(&report.cycles, shown(report, &judgement)),
            phases_tables(&report.cycles, report.clock),
        ]
        .concat()
    } else {
        String::new()
    };
    let body = [
        headline(report, &judgement),
        run,
        matrix,
        scale(&report.scale, report.clock),
        peers(report),
        host(report),
        if report.has_run() {
            all_cycles(&report.cycles, report.clock)
        } else {
            String::new()
        },
    ]
    .concat();
    let script = format!("<script>{SCRIPT}</script>");
    document(&format!("Resume latency: {verdict}"), "", &body, &script)
}

/// A whole page, which loads nothing from anywhere.
pub(super) fn document(title: &str, more_style: &str, body: &str, script: &str) -> String {
    format!(
        r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<style>{STYLE}{more_style}</style></head>
<body><main>{body}</main>{script}</body></html>
"#
    )
}

/// The plots, and a slider that selects one cycle to show in figures.
fn explorer(report: &Report, line: Option<Line>) -> String {
    let cycles = &report.cycles;
    let resume = painted(cycles, |cycle| &cycle.resume_phases_ms);
    let suspend = painted(cycles, |cycle| &cycle.suspend_phases_ms);
    let plots = [
        resume_plot(&report.resume_ms(), line, report.clock),
        phases_plot(
            "Phases of a resume",
            cycles,
            |cycle| &cycle.resume_phases_ms,
            &resume,
            report.clock,
        ),
        attempts_plot(cycles),
        suspend_plot(&report.suspend_ms(), report.clock),
        phases_plot(
            "Phases of a suspend",
            cycles,
            |cycle| &cycle.suspend_phases_ms,
            &suspend,
            report.clock,
        ),
    ]
    .concat();
    let count = cycles.len();
    let data = json_for_script(&explorer_data(report, &resume, &suspend));
    format!(
        r#"<section class="explorer" aria-labelledby="cycles"><h2 id="cycles">Every cycle</h2><div class="with-aside"><div class="plots">{plots}</div><aside hidden aria-label="One cycle"><label for="cycle">Cycle</label> <output for="cycle" id="cycle-number">{count}</output><input type="range" id="cycle" min="1" max="{count}" value="{count}" step="1"><p class="keys">Point at a plot, or move the slider with the arrow keys.</p><div id="readout" aria-live="polite"></div></aside></div><script type="application/json" id="cycle-data">{data}</script></section>"#
    )
}

fn explorer_data(
    report: &Report,
    resume: &[(String, Paint)],
    suspend: &[(String, Paint)],
) -> Value {
    let names = |painted: &[(String, Paint)]| -> Value {
        painted
            .iter()
            .map(|(name, paint)| json!([name, paint.class()]))
            .collect()
    };
    let durations = |phases: &Phases, painted: &[(String, Paint)]| -> Value {
        painted
            .iter()
            .map(|(name, _)| json!(phases.ms(name)))
            .collect()
    };
    let each = report.cycles.iter().map(|cycle| {
        json!([
            cycle.resume_ms,
            cycle.suspend_ms,
            durations(&cycle.resume_phases_ms, resume),
            durations(&cycle.suspend_phases_ms, suspend),
            attempts_text(cycle),
            cycle.guest_open_vsocks,
            cycle.image_bytes_written,
        ])
    });
    json!({ "unit": report.clock.unit(), "resume": names(resume), "suspend": names(suspend), "cycles": each.collect::<Value>() })
}
