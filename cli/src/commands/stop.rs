//! `mctl stop`: ends the main processes of machines, then the machines.

use machine_api::MachineState;

use crate::arguments::{MachinesArg, StopFlags};
use crate::each_machine::for_each;
use crate::error::CommandError;
use crate::session::Session;
use crate::transition::await_and_report;

/// Stop machines: signal their main process, and kill it after a time limit
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl stop web --signal SIGTERM --timeout 10s")]
pub(crate) struct Args {
    #[command(flatten)]
    machines: MachinesArg,
    #[command(flatten)]
    stop: StopFlags,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machines = args.machines.find(session).await?;
    let request = args.stop.request();
    for_each(session, machines, async |machine| {
        session.client.stop(&machine.id, &request).await?;
        // With auto_destroy, a machine is destroyed right after it has stopped.
        let wanted = if machine.config.auto_destroy {
            MachineState::Destroyed
        } else {
            MachineState::Stopped
        };
        await_and_report(session, &machine, wanted).await
    })
    .await
}
