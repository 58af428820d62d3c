//! `mctl destroy`: removes machines for good, after asking.

use std::io::{self, IsTerminal};

use crate::error::CommandError;
use crate::session::Session;
use crate::{machine_ref, transition};

/// Destroy machines with everything that belongs to them
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl destroy web --force --yes")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    #[arg(value_name = "MACHINE")]
    machines: Vec<String>,
    /// Destroy a machine that is running, too
    #[arg(long, short)]
    force: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machines = machine_ref::find_all(session, &args.machines).await?;
    if !args.yes {
        let labels: Vec<String> = machines.iter().map(transition::label).collect();
        confirm(session, &format!("destroy {}?", labels.join(", ")))?;
    }
    transition::for_each(session, machines, async |machine| {
        let label = transition::label(&machine);
        {
            let _spinner = session.output.spinner(format!("destroying {label}"));
            session.client.destroy(&machine.id, args.force).await?;
        }
        session.output.note(&format!("{label}: destroyed"));
        if session.output.is_json() {
            session
                .output
                .json_line(&serde_json::json!({"id": machine.id, "destroyed": true}))?;
        } else {
            session.output.line(&machine.id)?;
        }
        Ok(())
    })
    .await
}

/// Goes on only if somebody says yes.
pub(crate) fn confirm(session: &Session, question: &str) -> Result<(), CommandError> {
    if !io::stdin().is_terminal() {
        return Err(CommandError::NobodyToAsk);
    }
    if session.output.confirm(question)? {
        Ok(())
    } else {
        Err(CommandError::NotConfirmed)
    }
}
