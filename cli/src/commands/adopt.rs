//! `mctl adopt`: machines that the supervisor's database does not know, as after it was lost or
//! restored from a backup.

use machine_api::{AdoptMachine, UnlistedMachine};

use crate::confirm::confirm;
use crate::error::CommandError;
use crate::output::Table;
use crate::session::Session;
use crate::units::{bytes, without_fraction};
use crate::wording::label;

/// Show machines that the database does not know, take them back, or remove them
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Machines whose database was lost, moved away or restored from a backup keep running, and their folders
are left as they are. Without an argument, they are listed.

Examples:
  mctl adopt
  mctl adopt --all
  mctl adopt 148e0c5a2f9d31 --name web-old
  mctl adopt --remove 148e0c5a2f9d31")]
pub(crate) struct Args {
    /// Folders of the machines, as listed
    #[arg(value_name = "FOLDER")]
    folders: Vec<String>,
    /// Take back all that can be taken back
    #[arg(long, conflicts_with_all = ["folders", "remove"])]
    all: bool,
    /// Name that the machine gets, if it shall have another one; for one machine
    #[arg(long, conflicts_with_all = ["all", "remove"])]
    name: Option<String>,
    /// Remove the machines with all that they have, instead of taking them back
    #[arg(long, requires = "folders")]
    remove: bool,
    /// Remove a machine even if it runs
    #[arg(long, short, requires = "remove")]
    force: bool,
    /// Do not ask for confirmation
    #[arg(long, short, requires = "remove")]
    yes: bool,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    if args.remove {
        return remove(session, &args).await;
    }
    if args.folders.is_empty() && !args.all {
        return list(session).await;
    }
    if args.name.is_some() && args.folders.len() != 1 {
        let reason = "it is for one machine".to_owned();
        return Err(CommandError::of_argument("--name")(reason));
    }
    let folders = if args.all {
        let unlisted = session.client.unlisted().await?;
        let (fit, others): (Vec<_>, Vec<_>) =
            unlisted.into_iter().partition(|one| one.problem.is_none());
        for other in others {
            let problem = other.problem.unwrap_or_default();
            session
                .output
                .warning(&format!("{} is left as it is: {problem}", other.folder));
        }
        fit.into_iter().map(|one| one.folder).collect()
    } else {
        args.folders
    };
    for folder in folders {
        let request = AdoptMachine {
            name: args.name.clone(),
        };
        let machine = session.client.adopt(&folder, &request).await?;
        session.output.note(&format!(
            "{}: taken back, {}",
            label(&machine),
            machine.state
        ));
        if session.output.is_json() {
            session.output.json_line(&machine)?;
        } else {
            session.output.line(&machine.id)?;
        }
    }
    Ok(())
}

async fn list(session: &Session) -> Result<(), CommandError> {
    let unlisted = session.client.unlisted().await?;
    if session.output.is_json() {
        return Ok(session.output.json(&unlisted)?);
    }
    if unlisted.is_empty() {
        session.output.note("the database knows all machines");
        return Ok(());
    }
    let mut table = Table::new(["FOLDER", "NAME", "STATE", "SIZE", "CHANGED", "PROBLEM"]);
    for one in unlisted {
        table.row([
            one.folder.clone().into(),
            one.name.clone().unwrap_or_default().into(),
            state(&one).into(),
            bytes(one.bytes).into(),
            without_fraction(&one.changed_at.unwrap_or_default()).into(),
            one.problem.unwrap_or_default().into(),
        ]);
    }
    Ok(session.output.table(&table)?)
}

/// `started (VMM 4711)`, or the state alone.
fn state(unlisted: &UnlistedMachine) -> String {
    match unlisted.vmm_pid {
        Some(pid) => format!("{} (VMM {pid})", unlisted.state),
        None => unlisted.state.to_string(),
    }
}

async fn remove(session: &Session, args: &Args) -> Result<(), CommandError> {
    if !args.yes {
        confirm(session, &format!("remove {}?", args.folders.join(", ")))?;
    }
    for folder in &args.folders {
        session.client.remove_unlisted(folder, args.force).await?;
        session.output.note(&format!("{folder}: removed"));
        if session.output.is_json() {
            session
                .output
                .json_line(&serde_json::json!({"folder": folder, "removed": true}))?;
        } else {
            session.output.line(folder)?;
        }
    }
    Ok(())
}
