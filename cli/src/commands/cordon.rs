//! `mctl cordon` and `mctl uncordon`: whether new connections are routed to a machine.

use crate::error::CommandError;
use crate::session::Session;
use crate::{machine_ref, transition};

/// Route no new connections to machines, or (uncordon) route them again
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  mctl cordon web && mctl update web --env V=2 --yes && mctl uncordon web"
)]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    #[arg(value_name = "MACHINE")]
    machines: Vec<String>,
}

pub(crate) async fn run(session: &Session, args: Args, on: bool) -> Result<(), CommandError> {
    let machines = machine_ref::find_all(session, &args.machines).await?;
    let done = if on { "cordoned" } else { "uncordoned" };
    transition::for_each(session, machines, async |machine| {
        session.client.set_cordoned(&machine.id, on).await?;
        session
            .output
            .note(&format!("{}: {done}", transition::label(&machine)));
        Ok(())
    })
    .await
}
