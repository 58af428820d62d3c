//! `mctl restart`: stops machines and starts them again.

use machine_api::MachineState;

use super::stop::How;
use crate::error::CommandError;
use crate::session::Session;
use crate::{machine_ref, transition};

/// Stop machines and start them again
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl restart web --force")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    #[arg(value_name = "MACHINE")]
    machines: Vec<String>,
    /// Do not wait for the main process to end: kill it
    #[arg(long)]
    force: bool,
    /// Kept for scripts that are written for Fly: checks are not waited for
    #[arg(long, hide = true)]
    skip_health_checks: bool,
    #[command(flatten)]
    how: How,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machines = machine_ref::find_all(session, &args.machines).await?;
    let Args {
        force,
        skip_health_checks: _,
        ref how,
        ..
    } = args;
    let request = how.request();
    transition::for_each(session, machines, async |machine| {
        session.client.restart(&machine.id, force, &request).await?;
        transition::await_and_report(session, &machine, MachineState::Started).await
    })
    .await
}
