//! `mctl list`: all machines in one table.

use std::time::Duration;

use client::ListFilter;
use machine_api::{Machine, MachineState, Port, PublishedPort};

use super::machine_flags::parse_pair;
use super::wait::parse_state;
use crate::error::CommandError;
use crate::output::{Cell, Table};
use crate::session::Session;
use crate::wording::{kind_of_start, memory, state_cell, to_second};

/// List machines
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl list --state suspended --metadata team=web --watch")]
pub(crate) struct Args {
    /// Only machines in this state; can be repeated
    #[arg(long, value_name = "STATE", value_parser = parse_state)]
    state: Vec<MachineState>,
    /// Only machines with these metadata; can be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = parse_pair)]
    metadata: Vec<(String, String)>,
    /// Destroyed ones too
    #[arg(long)]
    all: bool,
    /// Print ids only
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    watch: Watch,
}

/// Refreshing.
#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    /// Show it again and again
    #[arg(long, short)]
    watch: bool,
    /// Time between refreshes
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = crate::span::parse_duration)]
    interval: Duration,
}

impl Watch {
    /// Shows once, or until somebody ends it. A refresh that fails ends it, too.
    pub(crate) async fn repeat(
        &self,
        session: &Session,
        show: impl AsyncFn() -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        if !self.watch {
            return show().await;
        }
        let mut first = true;
        loop {
            session.output.refresh(first)?;
            show().await?;
            first = false;
            tokio::time::sleep(self.interval).await;
        }
    }
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
        session.output.note("no machines; `mctl run` makes one");
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
                    .map_or("-".to_owned(), kind_of_start),
            ),
            Cell::new(to_second(&machine.created_at)),
        ]);
    }
    table
}

/// `8080->80, 10.0.0.7:8443->443`. A port that the host was to choose is shown as it did.
pub(crate) fn ports(machine: &Machine) -> String {
    let given: Vec<u16> = machine
        .config
        .services
        .iter()
        .flat_map(|service| service.ports.iter().map(|port| port.port))
        .collect();
    let number = |one: &PublishedPort| one.address.rsplit_once(':')?.1.parse::<u16>().ok();
    let is_chosen = |one: &&PublishedPort| number(one).is_some_and(|port| !given.contains(&port));
    let mut chosen: Vec<&PublishedPort> = machine.published.iter().filter(is_chosen).collect();
    let mut real = |port: &Port, internal_port: u16| {
        let found = chosen
            .iter()
            .position(|one| port.port == 0 && one.internal_port == internal_port);
        let found = found.and_then(|index| number(chosen.remove(index)));
        found.unwrap_or(port.port)
    };
    let all: Vec<String> = machine
        .config
        .services
        .iter()
        .flat_map(|service| {
            service
                .ports
                .iter()
                .map(|port| (port, service.internal_port))
        })
        .map(
            |(port, internal)| match (&port.address, real(port, internal)) {
                (Some(address), number) => format!("{address}:{number}->{internal}"),
                (None, number) => format!("{number}->{internal}"),
            },
        )
        .collect();
    if all.is_empty() {
        "-".to_owned()
    } else {
        all.join(", ")
    }
}
