//! `mctl resume`: `start` for machines that are suspended, and only for those.

use machine_api::MachineState;

use crate::error::CommandError;
use crate::session::Session;
use crate::{machine_ref, transition};

/// Resume suspended machines
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl resume web && mctl timings web")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    #[arg(value_name = "MACHINE")]
    machines: Vec<String>,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machines = machine_ref::find_all(session, &args.machines).await?;
    transition::for_each(session, machines, async |machine| {
        if !resumable(machine.state) {
            return Err(CommandError::NotSuspended {
                machine: transition::label(&machine),
                state: machine.state,
            });
        }
        session.client.start(&machine.id).await?;
        transition::await_and_report(session, &machine, MachineState::Started).await
    })
    .await
}

/// Suspended, on the way there, or already back.
const fn resumable(state: MachineState) -> bool {
    matches!(
        state,
        MachineState::Suspended
            | MachineState::Suspending
            | MachineState::Starting
            | MachineState::Started
    )
}
