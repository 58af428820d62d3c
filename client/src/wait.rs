//! Waiting until a machine is where it should be, and noticing early that it will not get there.

use std::time::{Duration, Instant};

use machine_api::{Machine, MachineState};

use crate::{Client, Error, ErrorKind};

/// How long one call waits before the machine is looked at for having gone astray.
const SLICE: Duration = Duration::from_secs(1);

impl Client {
    /// Waits until the machine is `wanted` and returns it. Fails early when it rests in a state
    /// from which it will not get there by itself, and at `deadline` when it is still on its way.
    ///
    /// A resting state counts when it has been seen twice: a request that was accepted may wait
    /// for its turn before anything happens.
    pub async fn reach(
        &self,
        id: &str,
        wanted: MachineState,
        deadline: Duration,
    ) -> Result<Machine, Error> {
        let begun = Instant::now();
        let mut seen_resting = None;
        loop {
            let left = deadline.saturating_sub(begun.elapsed());
            match self.wait(id, wanted, None, left.min(SLICE)).await {
                // What was reached may already have been left again; the wait is what counts.
                Ok(()) => return self.machine(id).await,
                Err(error) if error.kind() == ErrorKind::Deadline => {}
                Err(error) => return Err(error),
            }
            let machine = self.machine(id).await?;
            if machine.state == wanted {
                return Ok(machine);
            }
            let before = seen_resting.replace(machine.state);
            if fate(machine.state) == Fate::Final
                || (fate(machine.state) == Fate::Resting && before == Some(machine.state))
            {
                return Err(Error::Astray {
                    message: machine
                        .events
                        .iter()
                        .find_map(|event| event.message.clone()),
                    machine: machine.id,
                    wanted,
                    seen: machine.state,
                });
            }
            if begun.elapsed() >= deadline {
                let (seen, machine) = (machine.state, machine.id);
                return Err(Error::TooSlow {
                    machine,
                    wanted,
                    seen,
                    after: deadline,
                });
            }
        }
    }
}

impl Client {
    /// Waits until the machine is `wanted`, of the version `instance` if given, whatever it goes
    /// through before.
    pub async fn wait_until(
        &self,
        id: &str,
        wanted: MachineState,
        instance: Option<&str>,
        deadline: Duration,
    ) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            let left = deadline.saturating_sub(begun.elapsed());
            match self.wait(id, wanted, instance, left).await {
                Err(error) if error.kind() == ErrorKind::Deadline => {}
                end => return end,
            }
            if begun.elapsed() >= deadline {
                let Machine {
                    id: machine,
                    state: seen,
                    ..
                } = self.machine(id).await?;
                return Err(Error::TooSlow {
                    machine,
                    wanted,
                    seen,
                    after: deadline,
                });
            }
        }
    }
}

/// What is to be expected of a machine that is in some state without having been sent elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is on its way somewhere.
    Moving,
    /// It stays, unless an accepted request has not begun yet.
    Resting,
    /// It stays.
    Final,
}

const fn fate(state: MachineState) -> Fate {
    match state {
        MachineState::Starting
        | MachineState::Suspending
        | MachineState::Stopping
        | MachineState::Restarting
        | MachineState::Updating
        | MachineState::Destroying => Fate::Moving,
        MachineState::Created
        | MachineState::Started
        | MachineState::Suspended
        | MachineState::Stopped
        | MachineState::Failed => Fate::Resting,
        MachineState::Destroyed => Fate::Final,
    }
}
