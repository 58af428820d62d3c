//! Bringing machines into a state: ask, wait, say how it went. `start`, `stop`, `suspend`,
//! `resume`, `restart`, `run` and others share this.

use std::future::Future;

use machine_api::{Machine, MachineState, Operation, StartKind, Timing};

use crate::error::CommandError;
use crate::session::Session;
use crate::span::milliseconds;

/// Waits until `machine` is `wanted`, then prints it and says how long it took.
///
/// With a waiting time of zero it only says what was accepted.
pub(crate) async fn await_and_report(
    session: &Session,
    machine: &Machine,
    wanted: MachineState,
) -> Result<(), CommandError> {
    let label = label(machine);
    let patience = session.settings.wait_timeout.value;
    if patience.is_zero() {
        session.output.note(&format!(
            "{label}: accepted, not waiting until it is {wanted}"
        ));
        return print(session, machine);
    }
    let reached = {
        let _spinner = session
            .output
            .spinner(format!("waiting until {label} is {wanted}"));
        session.client.reach(&machine.id, wanted, patience).await?
    };
    // Of a machine that was already there, the newest timing is an old one.
    let timing = session
        .client
        .timings(&machine.id, Some(1))
        .await?
        .into_iter()
        .next();
    session.output.note(&format!(
        "{label}: {}",
        how_it_went(&reached, timing.as_ref())
    ));
    if let Some(StartKind::ColdBooted { reason }) = &reached.last_start
        && wanted == MachineState::Started
    {
        session.output.warning(&format!(
            "{label} was suspended, but had to boot: {reason}. What was in its memory is lost"
        ));
    }
    print(session, &reached)
}

/// The machine itself for programs, its id for people and scripts.
pub(crate) fn print(session: &Session, machine: &Machine) -> Result<(), CommandError> {
    if session.output.is_json() {
        session.output.json_line(machine)?;
    } else {
        session.output.line(&machine.id)?;
    }
    Ok(())
}

fn how_it_went(machine: &Machine, timing: Option<&Timing>) -> String {
    let state = machine.state;
    let Some(timing) = timing.filter(|timing| leads_to(timing.operation) == state) else {
        return state.to_string();
    };
    let how = match (&timing.start, timing.operation) {
        (Some(StartKind::Resumed), _) => "resumed",
        (Some(StartKind::SuspendCancelled), _) => "went on, its suspend was cancelled,",
        (Some(StartKind::Booted | StartKind::ColdBooted { .. }), _)
        | (None, Operation::Start | Operation::Resume) => "booted",
        (None, Operation::Suspend) => "suspended",
        (None, Operation::Stop) => "stopped",
    };
    let count = timing.phases.len();
    format!(
        "{how} in {} ({count} phases: `mctl timings`)",
        milliseconds(timing.total_ms)
    )
}

const fn leads_to(operation: Operation) -> MachineState {
    match operation {
        Operation::Start | Operation::Resume => MachineState::Started,
        Operation::Suspend => MachineState::Suspended,
        Operation::Stop => MachineState::Stopped,
    }
}

/// Name and id, as talk shows them.
pub(crate) fn label(machine: &Machine) -> String {
    format!("{} ({})", machine.name, machine.id)
}

/// Does `step` for each machine. One failure does not keep the others from being tried; it is
/// reported at once if there are others, and returned if there are not.
pub(crate) async fn for_each<F: Future<Output = Result<(), CommandError>>>(
    session: &Session,
    machines: Vec<Machine>,
    step: impl Fn(Machine) -> F,
) -> Result<(), CommandError> {
    let of = machines.len();
    let mut failures = Vec::new();
    for machine in machines {
        if let Err(error) = step(machine).await {
            if of > 1 {
                session.output.error(&error, error.hint().as_deref());
            }
            failures.push(error);
        }
    }
    match failures.len() {
        0 => Ok(()),
        1 if of == 1 => Err(failures.remove(0)),
        failed => Err(CommandError::Several {
            failed,
            of,
            kind: failures[0].kind(),
        }),
    }
}
