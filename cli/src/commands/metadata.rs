//! `mctl metadata`: free key/value pairs, changed without a new version.

use clap::Subcommand;

use super::machine_flags::parse_pair;
use crate::error::CommandError;
use crate::machine_ref;
use crate::output::Table;
use crate::session::Session;

/// Read and change the metadata of a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl metadata set web team=shop && mctl metadata get web team")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show all pairs, or one value
    #[command(after_help = "Example:\n  mctl metadata get web team")]
    Get {
        /// Id, beginning of an id, or name
        machine: String,
        /// Key of the value
        key: Option<String>,
    },
    /// Set pairs
    #[command(after_help = "Example:\n  mctl metadata set web team=shop tier=1")]
    Set {
        /// Id, beginning of an id, or name
        machine: String,
        /// What to set
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse_pair)]
        pairs: Vec<(String, String)>,
    },
    /// Delete pairs
    #[command(after_help = "Example:\n  mctl metadata delete web team")]
    Delete {
        /// Id, beginning of an id, or name
        machine: String,
        /// What to delete
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    match args.verb {
        Verb::Get { machine, key } => get(session, &machine, key).await,
        Verb::Set { machine, pairs } => {
            let id = machine_ref::find(session, Some(&machine)).await?.id;
            for (key, value) in pairs {
                session.client.set_metadata(&id, &key, &value).await?;
            }
            Ok(())
        }
        Verb::Delete { machine, keys } => {
            let id = machine_ref::find(session, Some(&machine)).await?.id;
            for key in keys {
                session.client.delete_metadata(&id, &key).await?;
            }
            Ok(())
        }
    }
}

async fn get(session: &Session, machine: &str, key: Option<String>) -> Result<(), CommandError> {
    let id = machine_ref::find(session, Some(machine)).await?.id;
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
