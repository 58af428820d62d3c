//! `mctl start`: starts machines; a suspended machine resumes.

use machine_api::MachineState;

use crate::arguments::MachinesArg;
use crate::each_machine::for_each;
use crate::error::CommandError;
use crate::session::Session;
use crate::transition::await_and_report;

/// Start machines, and resume suspended ones
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  mctl start web\n  mctl start --cold web")]
pub(crate) struct Args {
    #[command(flatten)]
    machines: MachinesArg,
    /// Boot suspended machines without their memory; the image is set aside
    #[arg(long)]
    cold: bool,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machines = args.machines.find(session).await?;
    // `mctl suspend` has the same steps: each command shows its own in one place.
    for_each(session, machines, async |machine| {
        if args.cold {
            session.client.start_cold(&machine.id).await?;
        } else {
            session.client.start(&machine.id).await?;
        }
        await_and_report(session, &machine, MachineState::Started).await
    })
    .await
}
