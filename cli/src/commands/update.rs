//! `mctl update`: gives a machine a new configuration.

use machine_api::{MachineConfig, MachineState, UpdateMachine};

use crate::arguments::{MachineArg, MachineFlags};
use crate::confirm::confirm;
use crate::error::CommandError;
use crate::parse;
use crate::session::Session;
use crate::transition::{await_and_report, print_machine};
use crate::wording::label;

/// Change the configuration of a machine and restart it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A change of metadata makes a new version, too; `mctl metadata set` makes none.

Example:
  mctl update web --metadata foo=bar --yes")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArg,
    /// New image
    #[arg(long)]
    image: Option<String>,
    /// Do not start the machine again if it has to be stopped
    #[arg(long)]
    skip_start: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// New program and arguments of the main process, in one string
    #[arg(
        long = "command",
        short = 'C',
        value_name = "CMD",
        conflicts_with = "command"
    )]
    line: Option<String>,
    /// New program and arguments of the main process
    #[arg(last = true, value_name = "ARGS")]
    command: Vec<String>,
    // Last, because its help heading applies to all arguments that follow.
    #[command(flatten)]
    flags: MachineFlags,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = args.machine.find(session).await?;
    let mut config = machine.config.clone();
    args.flags.apply(&mut config)?;
    if let Some(image) = args.image {
        config.image = image;
    }
    let command = match &args.line {
        Some(line) => parse::words(line).map_err(CommandError::of_argument("--command"))?,
        None => args.command,
    };
    if !command.is_empty() {
        config.init.get_or_insert_default().cmd = command;
    }
    let label = label(&machine);
    if !args.yes {
        for change in changes(&machine.config, &config) {
            session.output.note(&format!("  {change}"));
        }
        let restarts = if args.skip_start {
            ""
        } else {
            " and start it with the new configuration"
        };
        confirm(session, &format!("update {label}{restarts}?"))?;
    }
    let update = UpdateMachine {
        config,
        name: None,
        // The user confirmed a change of this version.
        current_version: Some(machine.instance_id.clone()),
        skip_launch: args.skip_start,
        ..UpdateMachine::default()
    };
    let updated = session.client.update(&machine.id, &update).await?;
    session
        .output
        .note(&format!("{label}: version {}", updated.instance_id));
    if args.skip_start {
        return print_machine(session, &updated);
    }
    session
        .output
        .note(&format!("{label}: starting with the new configuration"));
    await_and_report(session, &updated, MachineState::Started).await
}

/// Top-level fields that differ, one line each.
fn changes(old: &MachineConfig, new: &MachineConfig) -> Vec<String> {
    let fields = |config| match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (fields(old), fields(new));
    let nothing = serde_json::Value::Null;
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .map(|name| {
            (
                name,
                old.get(name).unwrap_or(&nothing),
                new.get(name).unwrap_or(&nothing),
            )
        })
        .filter(|(_, old, new)| old != new)
        .map(|(name, old, new)| format!("{name}: {old} -> {new}"))
        .collect()
}
