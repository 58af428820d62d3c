//! `mctl destroy`: removes machines for good, after a confirmation.

use crate::arguments::MachinesArg;
use crate::confirm::confirm;
use crate::each_machine::for_each;
use crate::error::CommandError;
use crate::session::Session;
use crate::wording::label;

/// Destroy machines and everything that belongs to them
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl destroy web --force --yes")]
pub(crate) struct Args {
    #[command(flatten)]
    machines: MachinesArg,
    /// Destroy running machines, too
    #[arg(long, short)]
    force: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machines = args.machines.find(session).await?;
    if !args.yes {
        let labels: Vec<String> = machines.iter().map(label).collect();
        confirm(session, &format!("destroy {}?", labels.join(", ")))?;
    }
    for_each(session, machines, async |machine| {
        let label = label(&machine);
        {
            let _spinner = session.output.spinner(format!("destroying {label}"));
            session.client.destroy(&machine.id, args.force).await?;
        }
        session.output.note(&format!("{label}: destroyed"));
        if session.output.is_json() {
            session
                .output
                .json_line(&serde_json::json!({"id": machine.id, "destroyed": true}))?;
        } else {
            session.output.line(&machine.id)?;
        }
        Ok(())
    })
    .await
}
