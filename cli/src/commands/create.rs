//! `mctl create`: creates a machine without starting it.

use crate::arguments::NewMachine;
use crate::error::CommandError;
use crate::session::Session;
use crate::transition::print_machine;
use crate::wording::label;

/// Create a machine without starting it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl create --name web --memory 512mb --port 8080:80")]
pub(crate) struct Args {
    #[command(flatten)]
    new: NewMachine,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let request = args.new.into_request(true)?;
    let machine = session.client.create(&request).await?;
    session.output.note(&format!(
        "{}: created; `mctl start` starts it",
        label(&machine)
    ));
    print_machine(session, &machine)
}
