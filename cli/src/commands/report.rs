//! `mctl report`: renders a JSON report of cycles as a page.

use std::path::PathBuf;

use cycles::{cycles_csv, report_page};

use crate::cycle_report::{print, write_file};
use crate::error::CommandError;
use crate::session::Session;

/// Render a JSON report of suspend/resume cycles as an HTML page
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl report target/e2e/report.json")]
pub(crate) struct Args {
    /// JSON report to read
    file: PathBuf,
    /// HTML file to write; by default the name of the report with .html
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// CSV file to write the cycles to
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

pub(crate) fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let mut report = cycles::load(&args.file)?;
    report.bring_up_to_date();
    let html = args
        .html
        .unwrap_or_else(|| args.file.with_extension("html"));
    write_file(&html, &report_page(&report))?;
    if let Some(csv) = &args.csv {
        write_file(csv, &cycles_csv(&report))?;
    }
    print(session, &report)?;
    session.output.note(&format!("page: {}", html.display()));
    Ok(())
}
