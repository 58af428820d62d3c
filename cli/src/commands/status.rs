//! `mctl status`: one machine, how it last started and was reached, its checks and events.

use machine_api::{Machine, MachineEvent};

use super::list::{Watch, ports};
use crate::error::CommandError;
use crate::machine_ref;
use crate::output::{Cell, Style, Table};
use crate::readiness::readiness_line;
use crate::session::Session;
use crate::span::{at_millisecond, milliseconds};
use crate::wording::{event_details, kind_of_start, memory, state_cell, to_second};

/// Events shown below a status; `mctl events` shows all.
const RECENT_EVENTS: usize = 10;

/// Show one machine: state, last start, readiness, checks, events
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl status web --watch")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
    /// Show its configuration as JSON, too
    #[arg(long, short)]
    display_config: bool,
    #[command(flatten)]
    watch: Watch,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let id = machine_ref::find(session, args.machine.as_deref())
        .await?
        .id;
    let with_config = args.display_config;
    args.watch
        .repeat(session, async || show(session, &id, with_config).await)
        .await
}

async fn show(session: &Session, id: &str, with_config: bool) -> Result<(), CommandError> {
    // A list may leave out what one machine's own page has.
    let machine = session.client.machine(id).await?;
    let output = &session.output;
    if output.is_json() {
        return Ok(output.json(&machine)?);
    }
    output.table(&facts(&machine))?;
    for warning in &machine.warnings {
        let warning = output.harmless(warning);
        output.tagged_line("\nwarning:", Style::Busy, &warning)?;
    }
    if !machine.checks.is_empty() {
        output.heading("\nChecks")?;
        output.table(&checks(&machine))?;
    }
    if !machine.events.is_empty() {
        output.heading("\nEvents")?;
        output.table(&events_table(machine.events.iter().take(RECENT_EVENTS)))?;
    }
    if with_config {
        output.heading("\nConfiguration")?;
        output.json(&machine.config)?;
    }
    Ok(())
}

fn facts(machine: &Machine) -> Table {
    let guest = machine.config.guest.clone().unwrap_or_default();
    let mut table = Table::fields();
    table.field("id", machine.id.as_str());
    table.field("name", machine.name.as_str());
    let mut state = state_cell(machine.state);
    if machine.cordoned {
        state = Cell::new(format!("{}, cordoned", machine.state)).styled(Style::Busy);
    }
    table.field("state", state);
    if let Some(kind) = &machine.last_start {
        table.field("last start", kind_of_start(kind));
    }
    if let Some(line) = readiness_line(&machine.readiness, machine.last_start.as_ref()) {
        table.field("readiness", line);
    }
    table.field(
        "image",
        format!(
            "{} {}",
            machine.image_ref.repository, machine.image_ref.digest
        ),
    );
    table.field(
        "guest",
        format!("{} vCPU, {}", guest.cpus, memory(guest.memory_mb)),
    );
    table.field("ports", ports(machine));
    let metadata: Vec<String> = machine
        .config
        .metadata
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if !metadata.is_empty() {
        table.field("metadata", metadata.join(", "));
    }
    table.field("version", machine.instance_id.as_str());
    table.field("generation", machine.generation.to_string());
    if let Some(pid) = machine.vmm_pid {
        table.field("vmm pid", pid.to_string());
    }
    table.field("created", to_second(&machine.created_at));
    table.field("updated", to_second(&machine.updated_at));
    table
}

fn checks(machine: &Machine) -> Table {
    let mut table = Table::new(["CHECK", "STATUS", "SINCE", "OUTPUT"]);
    for check in &machine.checks {
        let style = match check.status.as_str() {
            "passing" => Style::Good,
            "critical" => Style::Bad,
            _ => Style::Busy,
        };
        table.row([
            check.name.as_str().into(),
            Cell::new(check.status.as_str()).styled(style),
            to_second(&check.updated_at).into(),
            check.output.as_str().into(),
        ]);
    }
    table
}

/// Events, in the order in which they are given.
pub(crate) fn events_table<'a>(events: impl Iterator<Item = &'a MachineEvent>) -> Table {
    let mut table = Table::new(["TIME", "EVENT", "STATE", "SOURCE", ">DURATION", "DETAILS"]);
    for event in events {
        table.row([
            at_millisecond(event.timestamp).into(),
            event_name(event).into(),
            event.status.as_str().into(),
            event.source.as_str().into(),
            event
                .duration_ms
                .map_or("-".to_owned(), milliseconds)
                .into(),
            event_details(event).into(),
        ]);
    }
    table
}

/// The kind as the wire names it.
pub(crate) fn event_name(event: &MachineEvent) -> String {
    match serde_json::to_value(event.kind) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}
