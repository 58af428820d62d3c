//! `mctl metadata`: the key/value pairs of a machine, changed without a new version.

use clap::Subcommand;

use crate::arguments::RequiredMachineArg;
use crate::error::CommandError;
use crate::output::Table;
use crate::parse;
use crate::session::Session;

/// Show, set and delete metadata of a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl metadata set web team=shop && mctl metadata get web team")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all pairs, or one value
    #[command(after_help = "Example:\n  mctl metadata get web team")]
    Get {
        #[command(flatten)]
        machine: RequiredMachineArg,
        /// Key whose value is shown
        key: Option<String>,
    },
    /// Set pairs
    #[command(after_help = "Example:\n  mctl metadata set web team=shop tier=1")]
    Set {
        #[command(flatten)]
        machine: RequiredMachineArg,
        /// Pairs to set
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse::key_value)]
        pairs: Vec<(String, String)>,
    },
    /// Delete pairs
    #[command(after_help = "Example:\n  mctl metadata delete web team")]
    Delete {
        #[command(flatten)]
        machine: RequiredMachineArg,
        /// Keys to delete
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    match args.action {
        Action::Get { machine, key } => get(session, &machine, key).await,
        Action::Set { machine, pairs } => {
            let id = machine.find(session).await?.id;
            for (key, value) in pairs {
                session.client.set_metadata(&id, &key, &value).await?;
            }
            Ok(())
        }
        Action::Delete { machine, keys } => {
            let id = machine.find(session).await?.id;
            for key in keys {
                session.client.delete_metadata(&id, &key).await?;
            }
            Ok(())
        }
    }
}

async fn get(
    session: &Session,
    machine: &RequiredMachineArg,
    key: Option<String>,
) -> Result<(), CommandError> {
    let id = machine.find(session).await?.id;
    let all = session.client.metadata(&id).await?;
    if let Some(key) = key {
        let Some(value) = all.get(&key) else {
            return Err(CommandError::NoMetadata { key });
        };
        if session.output.is_json() {
            return Ok(session.output.json(value)?);
        }
        return Ok(session.output.line(&session.output.harmless(value))?);
    }
    if session.output.is_json() {
        return Ok(session.output.json(&all)?);
    }
    let mut table = Table::new(["KEY", "VALUE"]);
    for (key, value) in all {
        table.row([key.into(), value.into()]);
    }
    Ok(session.output.table(&table)?)
}
