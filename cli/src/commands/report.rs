//! `mctl report`: renders a JSON report of cycles again.

use std::fs;
use std::path::PathBuf;

use cycles::{Report, cycles_csv, report_page};

use crate::error::CommandError;
use crate::session::Session;

/// Render a report of suspend/resume cycles again
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl report target/e2e/report.json")]
pub(crate) struct Args {
    /// The JSON report
    file: PathBuf,
    /// Page to write; beside the report if not given
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the cycles as CSV, too
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

pub(crate) fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let report = cycles::load(&args.file)?;
    let html = args
        .html
        .unwrap_or_else(|| args.file.with_extension("html"));
    write(&html, &report_page(&report))?;
    if let Some(csv) = &args.csv {
        write(csv, &cycles_csv(&report.cycles))?;
    }
    summary(session, &report)?;
    session.output.note(&format!("page: {}", html.display()));
    Ok(())
}

/// Figures and verdict, as the harness prints them; the report itself for programs.
pub(crate) fn summary(session: &Session, report: &Report) -> Result<(), CommandError> {
    let output = &session.output;
    if output.is_json() {
        return Ok(output.json(report)?);
    }
    for (number, table) in cycles::tables_of(report).iter().enumerate() {
        if number > 0 {
            output.line("")?;
        }
        for line in table.lines() {
            output.line(&output.harmless(line))?;
        }
    }
    if !report.has_run() {
        return Ok(());
    }
    for rule in cycles::rules_in_words() {
        output.note(&rule);
    }
    let verdict = if report.flatness.flat {
        "flat"
    } else {
        "not flat"
    };
    let reason = output.harmless(&report.flatness.reason);
    Ok(output.line(&format!("verdict: {verdict}: {reason}"))?)
}

/// Writes a file whole.
pub(crate) fn write(path: &std::path::Path, text: &str) -> Result<(), CommandError> {
    fs::write(path, text).map_err(|source| CommandError::File {
        what: "write",
        path: path.to_owned(),
        source,
    })
}
