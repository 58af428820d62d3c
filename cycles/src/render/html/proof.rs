//! The page of a proof: one table, and each part's whole report, all in one file.
//!
//! A report's page becomes the document of a frame: its text is escaped, so nothing of it reaches the
//! page around it, and its own content security policy holds inside.

use super::page::{document, report_page};
use super::text::{Text, json_for_script, ms};
use crate::record::{PromiseOutcome, Proof, ProofPart};
use crate::statistics::median;

const OWN_STYLE: &str = "iframe{width:100%;height:85vh;border:1px solid #8886}\
    .parts td,.parts th{text-align:left;vertical-align:top}\
    dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dd{margin:0}\
    .promises{columns:3 20rem}.promises li{overflow-wrap:anywhere}pre{white-space:pre-wrap}";

/// The contents of `proof.html`.
pub fn proof_page(proof: &Proof) -> String {
    let holds = proof.holds();
    let (class, title) = if holds {
        (
            "flat",
            "The proof holds: flat, and every promise kept, on each kind of KVM",
        )
    } else {
        ("not-flat", "The proof does not hold")
    };
    let left_out = proof.parts.iter().filter(|part| part.left_out.is_some());
    let lede = match left_out.count() {
        0 => String::new(),
        1 => "One part was left out; the table says why.".to_owned(),
        parts => format!("{parts} parts were left out; the table says why."),
    };
    let body = [
        format!(
            r#"<header class="{class}"><p class="kicker">mctl {} &middot; {}</p><h1>{title}</h1><p class="lede">{lede}</p></header>"#,
            Text(&proof.version),
            Text(&proof.started_at),
        ),
        parts_table(&proof.parts),
        machine(proof),
        proof.parts.iter().map(part).collect(),
    ]
    .concat();
    let data =
        serde_json::to_value(proof).map_or_else(|_| String::new(), |value| json_for_script(&value));
    let script = format!(r#"<script type="application/json" id="proof">{data}</script>"#);
    document("mctl: proof", OWN_STYLE, &body, &script)
}

fn parts_table(parts: &[ProofPart]) -> String {
    let rows: String = parts.iter().map(row).collect();
    format!(
        r#"<section aria-labelledby="parts"><h2 id="parts">Kinds of KVM</h2><div class="scroll"><table class="parts"><thead><tr><th>part</th><th>KVM</th><th>result</th><th>cycles</th><th>resume p50</th><th>suspend p50</th><th>promises</th><th>took</th></tr></thead><tbody>{rows}</tbody></table></div></section>"#
    )
}

fn row(part: &ProofPart) -> String {
    let (name, kvm) = (Text(&part.name), Text(&part.kvm));
    if let Some(reason) = &part.left_out {
        return format!(
            r#"<tr class="left-out"><td>{name}</td><td>{kvm}</td><td colspan="6">left out: {}</td></tr>"#,
            Text(reason)
        );
    }
    let result = if part.holds() {
        "holds"
    } else {
        "does not hold"
    };
    let run = match part.runs {
        0 | 1 => String::new(),
        runs => format!(", in run {runs}"),
    };
    let (cycles, resume, suspend) = part.report.as_ref().map_or_else(
        || (String::new(), String::new(), String::new()),
        |report| {
            let p50 = |series: Vec<f64>| {
                median(&series).map_or_else(String::new, |value| {
                    format!("{} {}", ms(value), report.clock.unit())
                })
            };
            let verdict = match &report.failed_check {
                Some(_) => "a check failed",
                None => report.flatness.outcome.name(),
            };
            (
                format!("{}, {verdict}", report.cycles.len()),
                p50(report.resume_ms()),
                p50(report.suspend_ms()),
            )
        },
    );
    let (kept, broken, not_tried) = (
        part.count(PromiseOutcome::Kept),
        part.count(PromiseOutcome::Broken),
        part.count(PromiseOutcome::NotTried),
    );
    let minutes = part.seconds.div_ceil(60);
    format!(
        r#"<tr class="{result}"><td>{name}</td><td>{kvm}</td><td>{result}{run}</td><td>{cycles}</td><td>{resume}</td><td>{suspend}</td><td>{kept} kept, {broken} broken, {not_tried} not tried</td><td>{minutes} min</td></tr>"#
    )
}

fn machine(proof: &Proof) -> String {
    let entries: String = proof
        .machine
        .iter()
        .map(|(name, value)| {
            format!(
                "<dt>{}</dt><dd>{}</dd>",
                Text(&name.replace('_', " ")),
                Text(value)
            )
        })
        .collect();
    format!(
        r#"<section aria-labelledby="machine"><h2 id="machine">The machine that made it</h2><dl>{entries}</dl></section>"#
    )
}

fn part(part: &ProofPart) -> String {
    if part.left_out.is_some() {
        return String::new();
    }
    let errors: String = part
        .errors
        .iter()
        .map(|error| format!("<pre>{}</pre>", Text(error)))
        .collect();
    let promises: String = part
        .promises
        .iter()
        .map(|one| {
            let outcome = match one.outcome {
                PromiseOutcome::Kept => "kept",
                PromiseOutcome::Broken => "broken",
                PromiseOutcome::NotTried => "not tried",
            };
            let message = one
                .message
                .as_ref()
                .map_or_else(String::new, |text| format!("<pre>{}</pre>", Text(text)));
            let run = match one.run {
                0 | 1 => String::new(),
                run => format!(" (in run {run})"),
            };
            format!("<li>{outcome}{run}: {}{message}</li>", Text(&one.name))
        })
        .collect();
    let report = part.report.as_ref().map_or_else(String::new, |report| {
        format!(
            r#"<details><summary>Report of the cycles</summary><iframe title="Report of the cycles on {}" sandbox="allow-scripts" srcdoc="{}"></iframe></details>"#,
            Text(&part.kvm),
            attribute(&report_page(report))
        )
    });
    format!(
        r#"<section class="part"><h2>{}: {}</h2>{errors}{report}<details><summary>{} promises</summary><ul class="promises">{promises}</ul></details></section>"#,
        Text(&part.name),
        Text(&part.kvm),
        part.promises.len()
    )
}

/// A document as the value of an attribute in double quotes. Unlike [`Text`] it changes nothing.
fn attribute(document: &str) -> String {
    document.replace('&', "&amp;").replace('"', "&quot;")
}
