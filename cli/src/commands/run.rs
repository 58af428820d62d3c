//! `mctl run`: creates a machine and waits until it is started.

use machine_api::MachineState;

use crate::arguments::NewMachine;
use crate::error::CommandError;
use crate::session::Session;
use crate::transition::{await_and_report, print_machine};
use crate::wording::label;

/// Create a machine and start it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl run --name web --port 8080:80 -- httpd -f -p 80")]
pub(crate) struct Args {
    /// Do not wait until the machine is started
    #[arg(long, short)]
    detach: bool,
    #[command(flatten)]
    new: NewMachine,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let request = args.new.into_request(false)?;
    let machine = session.client.create(&request).await?;
    if !args.detach {
        return await_and_report(session, &machine, MachineState::Started).await;
    }
    session
        .output
        .note(&format!("{}: created, starting", label(&machine)));
    print_machine(session, &machine)
}
