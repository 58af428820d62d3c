//! `mctl signal` and `mctl kill`: a signal for the main process.

use super::stop::signal_name;
use crate::error::CommandError;
use crate::session::Session;
use crate::{machine_ref, transition};

/// Send a signal to the main process of a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl signal web --signal SIGHUP")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
    /// Signal to send
    #[arg(long, short, default_value = "SIGTERM", value_parser = signal_name)]
    signal: String,
}

/// Kill the main process of a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl kill web")]
pub(crate) struct KillArgs {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = machine_ref::find(session, args.machine.as_deref()).await?;
    session.client.signal(&machine.id, &args.signal).await?;
    let label = transition::label(&machine);
    session
        .output
        .note(&format!("{label}: {} sent", args.signal));
    Ok(())
}

pub(crate) async fn kill(session: &Session, args: KillArgs) -> Result<(), CommandError> {
    let KillArgs { machine } = args;
    let signal = "SIGKILL".to_owned();
    run(session, Args { machine, signal }).await
}
