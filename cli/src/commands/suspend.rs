//! `mctl suspend`: saves the memory of machines to disk and ends their VMMs.

use machine_api::MachineState;

use crate::arguments::MachinesArg;
use crate::each_machine::for_each;
use crate::error::CommandError;
use crate::session::Session;
use crate::transition::await_and_report;

/// Suspend machines: save their memory to disk and end their VMMs
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl suspend web && mctl resume web")]
pub(crate) struct Args {
    #[command(flatten)]
    machines: MachinesArg,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machines = args.machines.find(session).await?;
    // `mctl start` has the same steps: each command shows its own in one place.
    for_each(session, machines, async |machine| {
        session.client.suspend(&machine.id).await?;
        await_and_report(session, &machine, MachineState::Suspended).await
    })
    .await
}
