//! `mctl resume`: like `mctl start`, but refuses machines that are not suspended.

use machine_api::MachineState;

use crate::arguments::MachinesArg;
use crate::each_machine::for_each;
use crate::error::CommandError;
use crate::session::Session;
use crate::transition::await_and_report;
use crate::wording::label;

/// Resume suspended machines
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl resume web && mctl timings web")]
pub(crate) struct Args {
    #[command(flatten)]
    machines: MachinesArg,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machines = args.machines.find(session).await?;
    // Apart from the check, `mctl start` has the same steps: each command shows its own in one
    // place.
    for_each(session, machines, async |machine| {
        if !is_resumable(machine.state) {
            return Err(CommandError::NotSuspended {
                machine: label(&machine),
                state: machine.state,
            });
        }
        session.client.start(&machine.id).await?;
        await_and_report(session, &machine, MachineState::Started).await
    })
    .await
}

/// Whether the machine is suspended, becomes so, or resumes already.
const fn is_resumable(state: MachineState) -> bool {
    matches!(
        state,
        MachineState::Suspended
            | MachineState::Suspending
            | MachineState::Starting
            | MachineState::Started
    )
}
