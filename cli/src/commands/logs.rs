//! `mctl logs`: output of the main process, the console, and the supervisor's remarks.

use client::LogFilter;
use machine_api::{LogLine, LogSource};

use crate::error::CommandError;
use crate::output::Style;
use crate::session::Session;
use crate::{machine_ref, span};

/// Show the output of a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl logs web --follow --since 10m")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
    /// Go on with new lines
    #[arg(long, short)]
    follow: bool,
    /// Only lines from then on: how long ago (10m), or a time (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = span::parse_since)]
    since: Option<String>,
    /// Only so many of the last lines
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<u64>,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = machine_ref::find(session, args.machine.as_deref()).await?;
    let filter = LogFilter {
        follow: args.follow,
        since: args.since,
        tail: args.tail,
    };
    let mut lines = session.client.logs(&machine.id, &filter).await?;
    while let Some(line) = lines.next().await? {
        print(session, &line)?;
    }
    Ok(())
}

fn print(session: &Session, line: &LogLine) -> Result<(), CommandError> {
    if session.output.is_json() {
        return Ok(session.output.json_line(line)?);
    }
    let (source, style) = match line.source {
        LogSource::Stdout => ("stdout", Style::Plain),
        LogSource::Stderr => ("stderr", Style::Busy),
        LogSource::Console => ("console", Style::Faint),
        LogSource::Supervisor => ("supervisor", Style::Strong),
    };
    let text = session.output.harmless(&line.text);
    Ok(session
        .output
        .tagged_line(&format!("{} {source:<10}", line.time), style, &text)?)
}
