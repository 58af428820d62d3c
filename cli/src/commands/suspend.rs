//! `mctl suspend`: memory to disk, so that the machine costs nothing until it resumes.

use machine_api::MachineState;

use crate::error::CommandError;
use crate::session::Session;
use crate::{machine_ref, transition};

/// Suspend machines: save their memory and end their VMM
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl suspend web && mctl resume web")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    #[arg(value_name = "MACHINE")]
    machines: Vec<String>,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machines = machine_ref::find_all(session, &args.machines).await?;
    transition::for_each(session, machines, async |machine| {
        session.client.suspend(&machine.id).await?;
        transition::await_and_report(session, &machine, MachineState::Suspended).await
    })
    .await
}
