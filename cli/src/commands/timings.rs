//! `mctl timings`: where the time of starts, suspends, resumes and stops went.

use machine_api::{Operation, Timing};

use crate::error::CommandError;
use crate::machine_ref;
use crate::output::{Cell, Style, Table};
use crate::readiness::readiness_line;
use crate::session::Session;
use crate::span::bytes;
use crate::wording::{kind_of_start, operation, to_second};

/// Name of the part that no phase claims.
const UNATTRIBUTED: &str = "unattributed";

/// Show where the time of starts, suspends and resumes went, phase by phase
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The phases of each column sum to its total; what no phase claims stands as `unattributed`.

Example:
  mctl timings web --operation resume --limit 3")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
    /// Only this operation
    #[arg(long, short, value_name = "OPERATION", value_parser = parse_operation)]
    operation: Option<Operation>,
    /// So many of the newest per operation
    #[arg(long, short = 'n', value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=100))]
    limit: u16,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = machine_ref::find(session, args.machine.as_deref()).await?;
    let mut timings = session.client.timings(&machine.id, None).await?;
    timings.retain(|timing| {
        args.operation
            .is_none_or(|wanted| timing.operation == wanted)
    });
    if session.output.is_json() {
        return Ok(session.output.json(&timings)?);
    }
    if timings.is_empty() {
        session.output.note("nothing has been measured yet");
        return Ok(());
    }
    let operations = [
        Operation::Start,
        Operation::Suspend,
        Operation::Resume,
        Operation::Stop,
    ];
    let mut first = true;
    for wanted in operations {
        let these: Vec<&Timing> = timings.iter().filter(|t| t.operation == wanted).collect();
        let newest = &these[..these.len().min(args.limit.into())];
        if newest.is_empty() {
            continue;
        }
        if !first {
            session.output.line("")?;
        }
        first = false;
        show(session, wanted, newest, these.len())?;
    }
    Ok(())
}

fn show(
    session: &Session,
    what: Operation,
    timings: &[&Timing],
    of: usize,
) -> Result<(), CommandError> {
    let count = timings.len();
    let which = if count == of {
        String::new()
    } else {
        format!(", newest {count} of {of}")
    };
    session
        .output
        .heading(&format!("{} (ms{which})", operation(what)))?;
    session.output.table(&phases(timings))?;
    let newest = timings[0];
    if let Some(kind) = &newest.start {
        session
            .output
            .line(&format!("newest: {}", kind_of_start(kind)))?;
    }
    if let Some(line) = readiness_line(&newest.readiness, newest.start.as_ref()) {
        session.output.line(&format!("readiness: {line}"))?;
    }
    if let Some(written) = newest.image_bytes_written {
        let allocated = newest
            .image_bytes_allocated
            .map(|allocated| format!(", image occupies {}", bytes(allocated)))
            .unwrap_or_default();
        session
            .output
            .line(&format!("written: {}{allocated}", bytes(written)))?;
    }
    if let Some(error) = &newest.error {
        session
            .output
            .tagged_line("failed:", Style::Bad, &session.output.harmless(error))?;
    }
    Ok(())
}

/// One row per phase, one column per timing, newest first.
fn phases(timings: &[&Timing]) -> Table {
    let titles = timings
        .iter()
        .map(|timing| format!(">GEN {}", timing.generation));
    let mut table = Table::new(std::iter::once("PHASE".to_owned()).chain(titles));
    table.row(
        std::iter::once(Cell::new("started at")).chain(
            timings
                .iter()
                .map(|timing| Cell::new(to_second(&timing.started_at)).styled(Style::Faint)),
        ),
    );
    for name in names_in_order(timings) {
        table.row(
            std::iter::once(Cell::new(name)).chain(timings.iter().map(|timing| {
                match timing.phases.iter().find(|phase| phase.name == name) {
                    Some(phase) => Cell::new(format!("{:.3}", phase.ms)),
                    None => Cell::new("-"),
                }
            })),
        );
    }
    table.row(
        std::iter::once(Cell::new("total").styled(Style::Strong)).chain(
            timings
                .iter()
                .map(|timing| Cell::new(format!("{:.3}", timing.total_ms)).styled(Style::Strong)),
        ),
    );
    table
}

/// The union of all phases, each after the one it followed; unattributed last.
fn names_in_order<'a>(timings: &[&'a Timing]) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for timing in timings {
        let mut position = 0;
        for phase in &timing.phases {
            if let Some(known) = names.iter().position(|name| *name == phase.name) {
                position = known + 1;
            } else {
                names.insert(position, &phase.name);
                position += 1;
            }
        }
    }
    names.retain(|name| *name != UNATTRIBUTED);
    names.push(UNATTRIBUTED);
    names
}

fn parse_operation(text: &str) -> Result<Operation, String> {
    match text {
        "start" => Ok(Operation::Start),
        "suspend" => Ok(Operation::Suspend),
        "resume" => Ok(Operation::Resume),
        "stop" => Ok(Operation::Stop),
        _ => Err("known are start, suspend, resume, stop".to_owned()),
    }
}
