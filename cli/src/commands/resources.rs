//! `mctl resources`: what a machine and the processes that serve it have in use.

use std::collections::BTreeMap;

use machine_api::{MachineResources, ProcessUsage};

use crate::arguments::{MachineArg, WatchFlags};
use crate::error::CommandError;
use crate::output::{Cell, Table};
use crate::session::Session;
use crate::units::bytes;

/// Show what a machine has in use: descriptors, threads, memory, vsocks, files
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What grows with each suspend and resume is a leak. The database and the supervisor serve all machines.

Examples:
  mctl resources web
  mctl resources web --json")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArg,
    #[command(flatten)]
    watch: WatchFlags,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let id = args.machine.find(session).await?.id;
    args.watch
        .repeat(session, async || {
            let resources = session.client.resources(&id).await?;
            let output = &session.output;
            if output.is_json() {
                return Ok(output.json(&resources)?);
            }
            output.table(&processes(&resources))?;
            output.line("")?;
            Ok(output.table(&files_and_vsocks(&resources))?)
        })
        .await
}

/// One row per figure, one column per process.
fn processes(resources: &MachineResources) -> Table {
    let columns = [
        resources.guest_init.as_ref(),
        resources.vmm.as_ref(),
        Some(&resources.supervisor),
    ];
    let mut table = Table::new(["IN USE", ">GUEST-INIT", ">VMM", ">SUPERVISOR"]);
    let mut row = |name: &str, show: &dyn Fn(&ProcessUsage) -> Option<String>| {
        let cells = columns.map(|usage| cell(usage.and_then(show)));
        table.row(std::iter::once(Cell::new(name)).chain(cells));
    };
    let count = |value: Option<u64>| value.map(|value| value.to_string());
    row("descriptors", &|usage| count(usage.descriptors));
    row("threads", &|usage| count(usage.threads));
    row("memory", &|usage| usage.resident_bytes.map(bytes));
    row("  anonymous", &|usage| usage.anonymous_bytes.map(bytes));
    row("epoll entries", &|usage| count(usage.epoll_entries));
    row("timers", &|usage| count(usage.timers));
    table.row([
        Cell::new("tasks"),
        cell(count(resources.guest_tasks)),
        cell(None),
        cell(count(resources.supervisor_tasks)),
    ]);
    table
}

fn files_and_vsocks(resources: &MachineResources) -> Table {
    let mut table = Table::fields();
    let mut field = |name: &str, value: Option<String>| table.field(name, cell(value));
    field("vsocks in the guest", states(&resources.guest_vsocks));
    field(
        "vsocks in the VMM",
        states(&resources.vmm_vsock_connections),
    );
    let written = resources.vmm_guest_anonymous_bytes;
    field("guest memory written since the resume", written.map(bytes));
    field("last image", resources.image_bytes.map(bytes));
    field("logs", resources.log_bytes.map(bytes));
    let files = resources
        .machine_folder_files
        .map_or(String::new(), |files| {
            format!(" in {files} files and folders")
        });
    let folder = resources.machine_folder_bytes.map(bytes);
    field(
        "folder, with these",
        folder.map(|held| format!("{held}{files}")),
    );
    field("database", resources.database_bytes.map(bytes));
    table
}

/// Counts by state, such as `2 established, 1 listening`.
fn states(counts: &Option<BTreeMap<String, u64>>) -> Option<String> {
    let counts = counts.as_ref()?.iter().filter(|(_, count)| **count > 0);
    let words: Vec<String> = counts
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    Some(if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    })
}

fn cell(value: Option<String>) -> Cell {
    Cell::new(value.unwrap_or_else(|| "-".to_owned()))
}
