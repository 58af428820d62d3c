//! `mctl restart`: stops machines and starts them again.

use machine_api::MachineState;

use crate::arguments::{MachinesArg, StopFlags};
use crate::each_machine::for_each;
use crate::error::CommandError;
use crate::session::Session;
use crate::transition::await_and_report;

/// Stop machines and start them again
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl restart web --force")]
pub(crate) struct Args {
    #[command(flatten)]
    machines: MachinesArg,
    /// Kill the main process at once, without waiting for it to end
    #[arg(long)]
    force: bool,
    /// Accepted for scripts that are written for Fly; mctl does not wait for checks
    #[arg(long, hide = true)]
    skip_health_checks: bool,
    #[command(flatten)]
    stop: StopFlags,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let Args {
        machines,
        force,
        skip_health_checks: _,
        stop,
    } = args;
    let machines = machines.find(session).await?;
    let request = stop.request();
    for_each(session, machines, async |machine| {
        session.client.restart(&machine.id, force, &request).await?;
        await_and_report(session, &machine, MachineState::Started).await
    })
    .await
}
