//! `mctl wait`: blocks until a machine is in a state.

use std::time::Duration;

use machine_api::MachineState;

use crate::error::CommandError;
use crate::session::Session;
use crate::{machine_ref, transition};

/// Wait until a machine is in a state
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl wait web --state suspended --timeout 30s")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
    /// State to wait for
    #[arg(long, short, default_value = "started", value_parser = parse_state)]
    state: MachineState,
    /// Wait for this version to be there, not for an older one
    #[arg(long, value_name = "INSTANCE_ID")]
    instance: Option<String>,
    /// Give up after this time; --wait-timeout unless given
    #[arg(long, short, value_name = "TIME", value_parser = crate::span::parse_duration)]
    timeout: Option<Duration>,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = machine_ref::find(session, args.machine.as_deref()).await?;
    let state = args.state;
    let timeout = args.timeout.unwrap_or(session.settings.wait_timeout.value);
    let reached = {
        let waiting = format!("waiting until {} is {state}", transition::label(&machine));
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

/// A state by its name.
pub(crate) fn parse_state(text: &str) -> Result<MachineState, String> {
    MachineState::ALL
        .into_iter()
        .find(|state| state.name() == text)
        .ok_or_else(|| {
            format!(
                "known are {}",
                MachineState::ALL.map(MachineState::name).join(", ")
            )
        })
}
