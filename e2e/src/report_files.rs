//! Where reports go: JSON, CSV and one HTML page, side by side.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use cycles::{Report, cycles_csv, report_page};

/// Writes `<stem>.json`, `.csv` and `.html` into `folder` and returns their paths.
pub fn write(folder: &Path, stem: &str, report: &Report) -> anyhow::Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let json = serde_json::to_string_pretty(report).context("cannot write the report as JSON")?;
    let files = [
        ("json", json + "\n"),
        ("csv", cycles_csv(&report.cycles)),
        ("html", report_page(report)),
    ];
    files
        .into_iter()
        .map(|(ending, text)| {
            let path = folder.join(format!("{stem}.{ending}"));
            let beside = folder.join(format!(".{stem}.{ending}.new"));
            fs::write(&beside, text)
                .and_then(|()| fs::rename(&beside, &path))
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        })
        .collect()
}
