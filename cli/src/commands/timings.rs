//! `mctl timings`: the phases of starts, suspends, resumes and stops, and how long each took.

use machine_api::{Operation, Timing};

use crate::arguments::MachineArg;
use crate::error::CommandError;
use crate::output::{Cell, Style, Table};
use crate::parse;
use crate::readiness::readiness_line;
use crate::session::Session;
use crate::units::{bytes, without_fraction};
use crate::wording::start_kind;

/// Name of the time that belongs to no phase.
const UNATTRIBUTED: &str = "unattributed";

/// Show how long starts, suspends, resumes and stops took, phase by phase
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The phases of a column sum to its total; `unattributed` is the time that belongs to no phase.

Example:
  mctl timings web --operation resume --limit 3")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArg,
    /// Only this operation
    #[arg(long, short, value_name = "OPERATION", value_parser = parse::operation)]
    operation: Option<Operation>,
    /// Number of newest timings to show per operation
    #[arg(long, short = 'n', value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=100))]
    limit: u16,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = args.machine.find(session).await?;
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
    let mut first = true;
    for operation in Operation::ALL {
        let all: Vec<&Timing> = timings
            .iter()
            .filter(|timing| timing.operation == operation)
            .collect();
        let newest = &all[..all.len().min(args.limit.into())];
        if newest.is_empty() {
            continue;
        }
        if !first {
            session.output.line("")?;
        }
        first = false;
        show(session, operation, newest, all.len())?;
    }
    Ok(())
}

fn show(
    session: &Session,
    operation: Operation,
    timings: &[&Timing],
    total: usize,
) -> Result<(), CommandError> {
    let count = timings.len();
    let selection = if count == total {
        String::new()
    } else {
        format!(", newest {count} of {total}")
    };
    session
        .output
        .heading(&format!("{} (ms{selection})", operation.name()))?;
    session.output.table(&phases(timings))?;
    let newest = timings[0];
    if let Some(kind) = &newest.start {
        session
            .output
            .line(&format!("newest: {}", start_kind(kind)))?;
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
                .map(|timing| Cell::new(without_fraction(&timing.started_at)).styled(Style::Faint)),
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

/// The names of all phases, each after the phase that it follows; unattributed last.
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
