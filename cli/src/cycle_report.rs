//! Prints the report of suspend/resume cycles, and writes its files.

use std::fs;
use std::path::Path;

use cycles::Report;

use crate::error::CommandError;
use crate::session::Session;

/// Prints figures and verdict for people, the whole report for programs.
pub(crate) fn print(session: &Session, report: &Report) -> Result<(), CommandError> {
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
    let verdict = report.flatness.outcome.name();
    let reason = output.harmless(&report.flatness.reason);
    Ok(output.line(&format!("verdict: {verdict}: {reason}"))?)
}

/// Writes one file of a report.
pub(crate) fn write_file(path: &Path, text: &str) -> Result<(), CommandError> {
    fs::write(path, text).map_err(|source| CommandError::File {
        action: "write",
        path: path.to_owned(),
        source,
    })
}
