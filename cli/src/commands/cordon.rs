//! `mctl cordon` and `mctl uncordon`: whether new connections are routed to machines.

use crate::arguments::MachinesArg;
use crate::each_machine::for_each;
use crate::error::CommandError;
use crate::session::Session;
use crate::wording::label;

/// Stop routing new connections to machines
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  mctl cordon web && mctl update web --env V=2 --yes && mctl uncordon web"
)]
pub(crate) struct Args {
    #[command(flatten)]
    machines: MachinesArg,
}

pub(crate) async fn run(session: &Session, args: Args, cordoned: bool) -> Result<(), CommandError> {
    let machines = args.machines.find(session).await?;
    let done = if cordoned { "cordoned" } else { "uncordoned" };
    for_each(session, machines, async |machine| {
        session.client.set_cordoned(&machine.id, cordoned).await?;
        session.output.note(&format!("{}: {done}", label(&machine)));
        Ok(())
    })
    .await
}
