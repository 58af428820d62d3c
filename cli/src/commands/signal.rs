//! `mctl signal` and `mctl kill`: send a signal to the main process of a machine.

use crate::arguments::MachineArg;
use crate::error::CommandError;
use crate::parse;
use crate::session::Session;
use crate::wording::label;

/// Send a signal to the main process of a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl signal web --signal SIGHUP")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArg,
    /// Signal to send
    #[arg(long, short, default_value = "SIGTERM", value_parser = parse::signal)]
    signal: String,
}

/// Kill the main process of a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl kill web")]
pub(crate) struct KillArgs {
    #[command(flatten)]
    machine: MachineArg,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = args.machine.find(session).await?;
    session.client.signal(&machine.id, &args.signal).await?;
    session
        .output
        .note(&format!("{}: sent {}", label(&machine), args.signal));
    Ok(())
}

pub(crate) async fn kill(session: &Session, args: KillArgs) -> Result<(), CommandError> {
    let KillArgs { machine } = args;
    let signal = "SIGKILL".to_owned();
    run(session, Args { machine, signal }).await
}
