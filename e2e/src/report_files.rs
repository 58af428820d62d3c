//! Reports as files (JSON, CSV and one HTML page, side by side), and their summary in print.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use cycles::{Report, cycles_csv, report_page};

use crate::output;

/// Writes `<stem>.json`, `.csv` and `.html` into `folder` and returns their paths.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, stem: &str, report: &Report) -> anyhow::Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let json = serde_json::to_string_pretty(report).context("cannot write the report as JSON")?;
    let files = [
        ("json", json + "\n"),
        ("csv", cycles_csv(report)),
        ("html", report_page(report)),
    ];
    files
        .into_iter()
        .map(|(ending, text)| {
            let path = folder.join(format!("{stem}.{ending}"));
            let temporary = folder.join(format!(".{stem}.{ending}.new"));
            fs::write(&temporary, text)
                .and_then(|()| fs::rename(&temporary, &path))
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        })
        .collect()
}

/// Writes the report and prints its tables and its verdict.
///
/// # Errors
/// If a file cannot be written.
pub fn publish(folder: &Path, stem: &str, report: &Report) -> anyhow::Result<()> {
    let paths = write(folder, stem, report)?;
    for table in cycles::tables_of(report) {
        output::print(&table);
        output::print("");
    }
    if report.has_run() {
        let (verdict, reason) = (report.flatness.outcome.name(), &report.flatness.reason);
        output::print(&format!("verdict: {verdict}: {reason}"));
    }
    for path in paths {
        output::print(&format!("report: {}", path.display()));
    }
    Ok(())
}

/// Now, as RFC 3339 in UTC.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
}
