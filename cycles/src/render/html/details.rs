//! Tables and lists: phases, peers, scale runs, the host, and every cycle.

use std::fmt::Write;

use super::charts::attempts_text;
use super::text::{Text, count, ms};
use crate::record::{Clock, Cycle, Report, ScaleRun, on_or_off};
use crate::render::figures::{dash, peer_rows, phase_sections, scale_header, scale_row};
use crate::statistics::Quantiles;

/// A table that scrolls by itself where it is too wide. All cells are escaped here.
pub(super) fn table(
    caption: &str,
    header: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) -> String {
    let mut html = format!(
        r#"<div class="scroll" tabindex="0" role="region" aria-label="{0}"><table><caption>{0}</caption><thead><tr>"#,
        Text(caption)
    );
    for title in header {
        // Writing to a string cannot fail, here and below.
        let _ = write!(html, r#"<th scope="col">{}</th>"#, Text(title));
    }
    html.push_str("</tr></thead><tbody>");
    for row in rows {
        html.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let tag = if column == 0 {
                r#"th scope="row""#
            } else {
                "td"
            };
            let end = if column == 0 { "th" } else { "td" };
            let _ = write!(html, "<{tag}>{}</{end}>", Text(cell));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
    html
}

/// p50, p90, p99 and max of each phase.
pub(super) fn phases_tables(cycles: &[Cycle], clock: Clock) -> String {
    let unit = clock.unit();
    let tables: String = phase_sections(cycles)
        .into_iter()
        .rev()
        .map(|section| {
            let total = (format!("whole {}", section.title), section.total);
            let rows = section
                .phases
                .into_iter()
                .chain([total])
                .map(|(name, figures)| {
                    let mut row = vec![name];
                    row.extend(figures_of(figures));
                    row
                });
            let caption = format!("Phases of a {}, {unit}", section.title);
            table(&caption, &["phase", "p50", "p90", "p99", "max"], rows)
        })
        .collect();
    format!(
        r#"<section aria-labelledby="phases"><h2 id="phases">Phases in figures</h2><div class="columns totals">{tables}</div></section>"#
    )
}

fn figures_of(figures: Option<Quantiles>) -> Vec<String> {
    match figures {
        Some(q) => [q.p50, q.p90, q.p99, q.max].map(ms).to_vec(),
        None => vec![dash(); 4],
    }
}

/// The run and its peers side by side.
pub(super) fn peers(report: &Report) -> String {
    if report.peers.is_empty() {
        return String::new();
    }
    let unit = report.clock.unit();
    let header = [
        String::new(),
        format!("suspend p50, {unit}"),
        format!("suspend p99, {unit}"),
        format!("resume p50, {unit}"),
        format!("resume p99, {unit}"),
        format!("slope, {unit} per cycle"),
        "MiB written p50".to_owned(),
        "verdict".to_owned(),
    ];
    let header = header.each_ref().map(String::as_str);
    let rows = peer_rows(report).into_iter().map(|row| row.to_vec());
    format!(
        r#"<section aria-labelledby="peers"><h2 id="peers">Side by side</h2><p class="note">Same guest, same host, same readiness check.</p>{}</section>"#,
        table("The run and its peers", &header, rows)
    )
}

/// Resumes of guests that start with thousands of leaked pairs.
pub(super) fn scale(runs: &[ScaleRun], clock: Clock) -> String {
    if runs.is_empty() {
        return String::new();
    }
    let header = scale_header(clock);
    let header = header.each_ref().map(String::as_str);
    let rows = runs.iter().map(|run| scale_row(run).to_vec());
    format!(
        r#"<section aria-labelledby="scale"><h2 id="scale">Resumes with leaked pairs from the start</h2>{}</section>"#,
        table("Resume latency by port policy", &header, rows)
    )
}

/// The host and the run.
pub(super) fn host(report: &Report) -> String {
    let mut host = entry("KVM", &report.host.kvm_in_words());
    host.push_str(&entry("clock", report.clock.in_words()));
    for (name, value) in &report.host.details {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        host.push_str(&entry(&name.replace('_', " "), &value));
    }
    let config = &report.config;
    let subject = &config.subject;
    let mut run = entry("subject", &subject.name);
    if report.has_run() {
        run.push_str(&entry("cycles requested", &count(config.cycles)));
    }
    if let Some(mib) = subject.memory_mib {
        run.push_str(&entry("guest memory", &format!("{} MiB", count(mib))));
    }
    if let Some(vcpus) = subject.vcpus {
        run.push_str(&entry("guest processors", &count(vcpus)));
    }
    if let Some(policy) = subject.port_policy {
        run.push_str(&entry("vsock ports", policy.name()));
    }
    if let Some(eviction) = subject.eviction {
        run.push_str(&entry("eviction", on_or_off(eviction)));
    }
    for (name, value) in &subject.details {
        run.push_str(&entry(&name.replace('_', " "), value));
    }
    run.push_str(&entry("report made by version", &config.version));
    format!(
        r#"<section aria-labelledby="host"><h2 id="host">Where it ran</h2><div class="columns"><div><h3>Host</h3><dl>{host}</dl></div><div><h3>Run</h3><dl>{run}</dl></div></div></section>"#
    )
}

fn entry(name: &str, value: &str) -> String {
    format!("<dt>{}</dt><dd>{}</dd>", Text(name), Text(value))
}

/// Every cycle in figures, collapsed at first.
pub(super) fn all_cycles(cycles: &[Cycle], clock: Clock) -> String {
    let [suspend, resume] = ["suspend", "resume"].map(|name| format!("{name}, {}", clock.unit()));
    let header = [
        "cycle",
        &suspend,
        &resume,
        "readiness",
        "vsock sockets open",
        "bytes written",
    ];
    let rows = cycles.iter().map(|cycle| {
        vec![
            cycle.cycle.to_string(),
            ms(cycle.suspend_ms),
            ms(cycle.resume_ms),
            attempts_text(cycle),
            cycle.guest_open_vsocks.map_or_else(dash, count),
            cycle.image_bytes_written.map_or_else(dash, count),
        ]
    });
    format!(
        r#"<details><summary>All {} cycles in figures</summary>{}</details>"#,
        count(cycles.len()),
        table("All cycles", &header, rows)
    )
}
