//! Waits until a machine is in a state, and reports how it got there.

use machine_api::{Machine, MachineState, Operation, StartKind, Timing};

use crate::error::CommandError;
use crate::session::Session;
use crate::units::milliseconds;
use crate::wording::label;

/// Waits until `machine` is in the state `wanted`, prints it, and reports how long that took.
///
/// With a wait timeout of zero it does not wait, and only reports that the request was accepted.
pub(crate) async fn await_and_report(
    session: &Session,
    machine: &Machine,
    wanted: MachineState,
) -> Result<(), CommandError> {
    let label = label(machine);
    let timeout = session.settings.wait_timeout.value;
    if timeout.is_zero() {
        session.output.note(&format!(
            "{label}: accepted, not waiting until it is {wanted}"
        ));
        return print_machine(session, machine);
    }
    let reached = {
        let _spinner = session
            .output
            .spinner(format!("waiting until {label} is {wanted}"));
        session.client.reach(&machine.id, wanted, timeout).await?
    };
    // If the machine was in this state already, the newest timing is of an earlier transition.
    let timing = session
        .client
        .timings(&machine.id, Some(1))
        .await?
        .into_iter()
        .next();
    session
        .output
        .note(&format!("{label}: {}", outcome(&reached, timing.as_ref())));
    if let Some(StartKind::ColdBooted { reason }) = &reached.last_start
        && wanted == MachineState::Started
    {
        session.output.warning(&format!(
            "{label} was suspended, but had to boot: {reason}. The content of its memory is lost"
        ));
    }
    print_machine(session, &reached)
}

/// Prints the whole machine for programs, its id for people and scripts.
pub(crate) fn print_machine(session: &Session, machine: &Machine) -> Result<(), CommandError> {
    if session.output.is_json() {
        session.output.json_line(machine)?;
    } else {
        session.output.line(&machine.id)?;
    }
    Ok(())
}

fn outcome(machine: &Machine, timing: Option<&Timing>) -> String {
    let state = machine.state;
    let Some(timing) = timing.filter(|timing| end_state(timing.operation) == state) else {
        return state.to_string();
    };
    let done = match (&timing.start, timing.operation) {
        (Some(StartKind::Resumed), _) => "resumed",
        (Some(StartKind::SuspendCancelled), _) => "cancelled its suspend and went on",
        (Some(StartKind::Booted | StartKind::ColdBooted { .. }), _)
        | (None, Operation::Start | Operation::Resume) => "booted",
        (None, Operation::Suspend) => "suspended",
        (None, Operation::Stop) => "stopped",
    };
    let count = timing.phases.len();
    format!(
        "{done} in {} ({count} phases: `mctl timings`)",
        milliseconds(timing.total_ms)
    )
}

const fn end_state(operation: Operation) -> MachineState {
    match operation {
        Operation::Start | Operation::Resume => MachineState::Started,
        Operation::Suspend => MachineState::Suspended,
        Operation::Stop => MachineState::Stopped,
    }
}
