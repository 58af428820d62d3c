//! `mctl logs`: the log of a machine, with the output of its main process, its console, and
//! messages of the supervisor.

use client::LogFilter;
use machine_api::{LogLine, LogSource};

use crate::arguments::MachineArg;
use crate::error::CommandError;
use crate::output::Style;
use crate::parse;
use crate::session::Session;

/// Show the log of a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl logs web --follow --since 10m")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArg,
    /// Print new lines, too, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Only lines since this time: how long ago (10m), or a point in time (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = parse::since)]
    since: Option<String>,
    /// Only this many of the last lines
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<u64>,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = args.machine.find(session).await?;
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
