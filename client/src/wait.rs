//! Waiting until a machine is in a state, and failing early if it will not get there.

use std::time::{Duration, Instant};

use machine_api::{Machine, MachineState};

use crate::client::Client;
use crate::error::{Error, ErrorKind};

/// How long one call waits before the machine's state is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Client {
    /// Waits until the machine is in the state `wanted`, and returns it. Fails early if the machine
    /// stays in a state that it does not leave by itself, and after `deadline` if the machine is
    /// still on its way.
    ///
    /// A state that the machine does not leave by itself must be seen twice: an accepted request
    /// may have to wait before it changes the state.
    pub async fn reach(
        &self,
        id: &str,
        wanted: MachineState,
        deadline: Duration,
    ) -> Result<Machine, Error> {
        let started_at = Instant::now();
        let mut last_state = None;
        loop {
            let left = deadline.saturating_sub(started_at.elapsed());
            match self.wait(id, wanted, None, left.min(CHECK_INTERVAL)).await {
                // The machine may have left the state again; it has been reached all the same.
                Ok(()) => return self.machine(id).await,
                Err(error) if error.kind() == ErrorKind::Deadline => {}
                Err(error) => return Err(error),
            }
            let machine = self.machine(id).await?;
            if machine.state == wanted {
                return Ok(machine);
            }
            let state_before = last_state.replace(machine.state);
            let stays = match kind_of(machine.state) {
                StateKind::Transition => false,
                StateKind::Settled => state_before == Some(machine.state),
                StateKind::Final => true,
            };
            if stays {
                return Err(Error::OtherState {
                    message: machine
                        .events
                        .iter()
                        .find_map(|event| event.message.clone()),
                    machine: machine.id,
                    wanted,
                    seen: machine.state,
                });
            }
            if started_at.elapsed() >= deadline {
                let (seen, machine) = (machine.state, machine.id);
                return Err(Error::StateDeadline {
                    machine,
                    wanted,
                    seen,
                    after: deadline,
                });
            }
        }
    }

    /// Waits until the machine is in the state `wanted` and, if given, of the version `instance`.
    /// Other states on the way do not end the wait.
    pub async fn wait_until(
        &self,
        id: &str,
        wanted: MachineState,
        instance: Option<&str>,
        deadline: Duration,
    ) -> Result<(), Error> {
        let started_at = Instant::now();
        loop {
            let left = deadline.saturating_sub(started_at.elapsed());
            match self.wait(id, wanted, instance, left).await {
                Err(error) if error.kind() == ErrorKind::Deadline => {}
                end => return end,
            }
            if started_at.elapsed() >= deadline {
                let Machine {
                    id: machine,
                    state: seen,
                    ..
                } = self.machine(id).await?;
                return Err(Error::StateDeadline {
                    machine,
                    wanted,
                    seen,
                    after: deadline,
                });
            }
        }
    }
}

/// Whether a machine leaves a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StateKind {
    /// The machine is on its way to another state.
    Transition,
    /// The machine stays, unless a request is accepted.
    Settled,
    /// The machine stays for ever.
    Final,
}

const fn kind_of(state: MachineState) -> StateKind {
    match state {
        MachineState::Starting
        | MachineState::Suspending
        | MachineState::Stopping
        | MachineState::Restarting
        | MachineState::Updating
        | MachineState::Destroying => StateKind::Transition,
        MachineState::Created
        | MachineState::Started
        | MachineState::Suspended
        | MachineState::Stopped
        | MachineState::Failed => StateKind::Settled,
        MachineState::Destroyed => StateKind::Final,
    }
}
