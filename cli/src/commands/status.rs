//! `mctl status`: one machine, its last start, its checks and its events.

use machine_api::Machine;

use crate::arguments::{MachineArg, WatchFlags};
use crate::error::CommandError;
use crate::output::{Cell, Style, Table};
use crate::readiness::readiness_line;
use crate::session::Session;
use crate::units::{memory, without_fraction};
use crate::wording::{events_table, ports, start_kind, state_cell};

/// Number of events that are shown; `mctl events` shows more.
const RECENT_EVENTS: usize = 10;

/// Show one machine: state, last start, readiness, checks, events
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl status web --watch")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArg,
    /// Show the configuration as JSON, too
    #[arg(long, short)]
    display_config: bool,
    #[command(flatten)]
    watch: WatchFlags,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let id = args.machine.find(session).await?.id;
    let with_config = args.display_config;
    args.watch
        .repeat(session, async || show(session, &id, with_config).await)
        .await
}

async fn show(session: &Session, id: &str, with_config: bool) -> Result<(), CommandError> {
    // The list of machines may leave out fields.
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
        table.field("last start", start_kind(kind));
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
    table.field("created", without_fraction(&machine.created_at));
    table.field("updated", without_fraction(&machine.updated_at));
    table
}

fn checks(machine: &Machine) -> Table {
    let mut table = Table::new(["CHECK", "STATUS", "LAST RUN", "OUTPUT"]);
    for check in &machine.checks {
        let style = match check.status.as_str() {
            "passing" => Style::Good,
            "critical" => Style::Bad,
            _ => Style::Busy,
        };
        table.row([
            check.name.as_str().into(),
            Cell::new(check.status.as_str()).styled(style),
            without_fraction(&check.updated_at).into(),
            check.output.as_str().into(),
        ]);
    }
    table
}
