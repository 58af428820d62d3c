//! `mctl list`: the machines, in one table.

use client::ListFilter;
use machine_api::{Machine, MachineState};

use crate::arguments::WatchFlags;
use crate::error::CommandError;
use crate::output::{Cell, Table};
use crate::parse;
use crate::session::Session;
use crate::units::{memory, without_fraction};
use crate::wording::{ports, start_kind, state_cell};

/// List machines
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl list --state suspended --metadata team=web --watch")]
pub(crate) struct Args {
    /// Only machines in this state; can be repeated
    #[arg(long, value_name = "STATE", value_parser = parse::state)]
    state: Vec<MachineState>,
    /// Only machines with these metadata; can be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = parse::key_value)]
    metadata: Vec<(String, String)>,
    /// List destroyed machines, too
    #[arg(long)]
    all: bool,
    /// Print ids only
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    watch: WatchFlags,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let filter = ListFilter {
        states: args.state,
        metadata: args.metadata,
        include_deleted: args.all,
    };
    let quiet = args.quiet;
    args.watch
        .repeat(session, async || show(session, &filter, quiet).await)
        .await
}

async fn show(session: &Session, filter: &ListFilter, quiet: bool) -> Result<(), CommandError> {
    let machines = session.client.list(filter).await?;
    if session.output.is_json() {
        return Ok(session.output.json(&machines)?);
    }
    if quiet {
        for machine in machines {
            session.output.line(&machine.id)?;
        }
        return Ok(());
    }
    if machines.is_empty() {
        session.output.note("no machines; `mctl run` creates one");
        return Ok(());
    }
    Ok(session.output.table(&table(&machines))?)
}

fn table(machines: &[Machine]) -> Table {
    let titles = [
        "ID",
        "NAME",
        "STATE",
        "IMAGE",
        ">CPUS",
        ">MEMORY",
        "PORTS",
        "LAST START",
        "CREATED",
    ];
    let mut table = Table::new(titles);
    for machine in machines {
        let guest = machine.config.guest.clone().unwrap_or_default();
        let state = state_cell(machine.state);
        let image = match machine.image_ref.repository.as_str() {
            "" => machine.config.image.as_str(),
            name => name,
        };
        table.row([
            Cell::new(&machine.id),
            Cell::new(&machine.name),
            state,
            Cell::new(image),
            Cell::new(guest.cpus.to_string()),
            Cell::new(memory(guest.memory_mb)),
            Cell::new(ports(machine)),
            Cell::new(
                machine
                    .last_start
                    .as_ref()
                    .map_or("-".to_owned(), start_kind),
            ),
            Cell::new(without_fraction(&machine.created_at)),
        ]);
    }
    table
}
