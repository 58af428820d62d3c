//! `mctl wait`: waits until a machine is in a state.

use std::time::Duration;

use machine_api::MachineState;

use crate::arguments::MachineArg;
use crate::error::CommandError;
use crate::parse;
use crate::session::Session;
use crate::wording::label;

/// Wait until a machine is in a state
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl wait web --state suspended --timeout 30s")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArg,
    /// State to wait for
    #[arg(long, short, default_value = "started", value_parser = parse::state)]
    state: MachineState,
    /// Wait until the machine has this version and is in the state
    #[arg(long, value_name = "INSTANCE_ID")]
    instance: Option<String>,
    /// Give up after this time; --wait-timeout if not given
    #[arg(long, short, value_name = "TIME", value_parser = parse::duration)]
    timeout: Option<Duration>,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = args.machine.find(session).await?;
    let state = args.state;
    let timeout = args.timeout.unwrap_or(session.settings.wait_timeout.value);
    let reached = {
        let waiting = format!("waiting until {} is {state}", label(&machine));
        let _spinner = session.output.spinner(waiting);
        session
            .client
            .wait_until(&machine.id, state, args.instance.as_deref(), timeout)
            .await
    };
    reached?;
    if session.output.is_json() {
        session
            .output
            .json_line(&serde_json::json!({"id": machine.id, "state": state}))?;
    } else {
        session.output.line(&format!("{} {state}", machine.id))?;
    }
    Ok(())
}
