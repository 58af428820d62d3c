//! `mctl update`: a new version of a machine.

use machine_api::{MachineConfig, MachineState, UpdateMachine};

use super::destroy::confirm;
use super::machine_flags::{MachineFlags, words};
use crate::error::CommandError;
use crate::session::Session;
use crate::{machine_ref, transition};

/// Change the configuration of a machine and restart it with that
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Metadata alone make a new version, too; `mctl metadata set` changes them without one.

Example:
  mctl update web --metadata foo=bar --yes")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
    /// Another image
    #[arg(long)]
    image: Option<String>,
    /// Do not start it, if it has to be stopped for this
    #[arg(long)]
    skip_start: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    flags: MachineFlags,
    /// Another command for the main process, in one string
    #[arg(
        long = "command",
        short = 'C',
        value_name = "CMD",
        conflicts_with = "command"
    )]
    line: Option<String>,
    /// Another command for the main process
    #[arg(last = true, value_name = "ARGS")]
    command: Vec<String>,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = machine_ref::find(session, args.machine.as_deref()).await?;
    let mut config = machine.config.clone();
    args.flags.apply(&mut config)?;
    if let Some(image) = args.image {
        config.image = image;
    }
    let command = match &args.line {
        Some(line) => words("--command", line)?,
        None => args.command,
    };
    if !command.is_empty() {
        config.init.get_or_insert_default().cmd = command;
    }
    let label = transition::label(&machine);
    if !args.yes {
        for change in changes(&machine.config, &config) {
            session.output.note(&format!("  {change}"));
        }
        let restarts = if args.skip_start {
            ""
        } else {
            " and start it with that"
        };
        confirm(session, &format!("update {label}{restarts}?"))?;
    }
    let update = UpdateMachine {
        config,
        name: None,
        // What was shown and agreed to is a change of this version.
        current_version: Some(machine.instance_id.clone()),
        skip_launch: args.skip_start,
        ..UpdateMachine::default()
    };
    let updated = session.client.update(&machine.id, &update).await?;
    session
        .output
        .note(&format!("{label}: version {}", updated.instance_id));
    if args.skip_start {
        return transition::print(session, &updated);
    }
    session
        .output
        .note(&format!("{label}: it is started with that"));
    transition::await_and_report(session, &updated, MachineState::Started).await
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
