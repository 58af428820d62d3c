//! The state of a machine's vCPUs, and the effect of each request on it. Pure: no I/O, no clock.
//!
//! ```text
//! Building ─ entered ─▶ Running ◀─ unpause ─ pause ─▶ Paused
//!                          │                            │
//!                          └─ suspend ─▶ Suspending ◀───┘     a failed or cancelled suspend returns
//!                                                             to the state that it came from
//! ```
//!
//! The end of the process is no state: it may end in any of these.

use vmm_control::RunState;

/// The state of the vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Started, but not all have been entered.
    Building,
    /// Running.
    Running,
    /// Halted by request.
    Paused,
    /// Halted, and being saved.
    Suspending {
        /// The state to which a failed suspend returns.
        from: Stable,
    },
}

/// A state in which no suspend is in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stable {
    /// See [`State::Running`].
    Running,
    /// See [`State::Paused`].
    Paused,
}

/// An input to the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// All vCPUs have been entered.
    Entered,
    /// Requested.
    Pause,
    /// Requested.
    Unpause,
    /// Requested.
    Suspend,
    /// The suspend in progress has failed or was cancelled.
    SuspendFailed,
}

/// What the caller has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing: the state is already as requested.
    Nothing,
    /// Halt the vCPUs.
    Halt,
    /// Let them run.
    Run,
    /// Save; halt the vCPUs first if they run.
    Save,
    /// Refuse: a suspend is in progress.
    Refuse,
}

impl State {
    /// Its name on the control socket.
    #[must_use]
    pub fn run_state(self) -> RunState {
        match self {
            Self::Building => RunState::Building,
            Self::Running => RunState::Running,
            Self::Paused => RunState::Paused,
            Self::Suspending { .. } => RunState::Suspending,
        }
    }

    /// Whether vCPUs may run, and devices are served.
    #[must_use]
    pub fn is_running(self) -> bool {
        matches!(self, Self::Building | Self::Running)
    }
}

/// Returns the next state and the action that leads to it. The caller carries the action out, and changes
/// the state only if that succeeds.
#[must_use]
pub fn apply(state: State, input: Input) -> (State, Action) {
    use Input::{Entered, Pause, SuspendFailed, Unpause};
    use State::{Building, Paused, Running, Suspending};
    match (state, input) {
        (Building, Entered) => (Running, Action::Nothing),
        (Running | Building, Pause) => (Paused, Action::Halt),
        (Paused, Unpause) => (Running, Action::Run),
        (Running | Building, Input::Suspend) => (
            Suspending {
                from: Stable::Running,
            },
            Action::Save,
        ),
        (Paused, Input::Suspend) => (
            Suspending {
                from: Stable::Paused,
            },
            Action::Save,
        ),
        (
            Suspending {
                from: Stable::Running,
            },
            SuspendFailed,
        ) => (Running, Action::Run),
        (
            Suspending {
                from: Stable::Paused,
            },
            SuspendFailed,
        ) => (Paused, Action::Nothing),
        (Suspending { .. }, Pause | Unpause | Input::Suspend) => (state, Action::Refuse),
        // Paused before the last vCPU had been entered, or already as requested.
        (_, Entered | SuspendFailed) | (Paused, Pause) | (Running | Building, Unpause) => {
            (state, Action::Nothing)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUSPENDING: State = State::Suspending {
        from: Stable::Running,
    };
    const SUSPENDING_PAUSED: State = State::Suspending {
        from: Stable::Paused,
    };

    #[test]
    fn every_state_and_input_has_its_step() {
        use Action::{Halt, Nothing, Refuse, Run, Save};
        use Input::{Entered, Pause, Suspend, SuspendFailed, Unpause};
        use State::{Building, Paused, Running};
        let table = [
            (Building, Entered, Running, Nothing),
            (Building, Pause, Paused, Halt),
            (Building, Unpause, Building, Nothing),
            (Building, Suspend, SUSPENDING, Save),
            (Building, SuspendFailed, Building, Nothing),
            (Running, Entered, Running, Nothing),
            (Running, Pause, Paused, Halt),
            (Running, Unpause, Running, Nothing),
            (Running, Suspend, SUSPENDING, Save),
            (Running, SuspendFailed, Running, Nothing),
            (Paused, Entered, Paused, Nothing),
            (Paused, Pause, Paused, Nothing),
            (Paused, Unpause, Running, Run),
            (Paused, Suspend, SUSPENDING_PAUSED, Save),
            (Paused, SuspendFailed, Paused, Nothing),
            (SUSPENDING, Entered, SUSPENDING, Nothing),
            (SUSPENDING, Pause, SUSPENDING, Refuse),
            (SUSPENDING, Unpause, SUSPENDING, Refuse),
            (SUSPENDING, Suspend, SUSPENDING, Refuse),
            (SUSPENDING, SuspendFailed, Running, Run),
            (SUSPENDING_PAUSED, Entered, SUSPENDING_PAUSED, Nothing),
            (SUSPENDING_PAUSED, Pause, SUSPENDING_PAUSED, Refuse),
            (SUSPENDING_PAUSED, Unpause, SUSPENDING_PAUSED, Refuse),
            (SUSPENDING_PAUSED, Suspend, SUSPENDING_PAUSED, Refuse),
            (SUSPENDING_PAUSED, SuspendFailed, Paused, Nothing),
        ];
        for (state, input, next, action) in table {
            assert_eq!(apply(state, input), (next, action), "{state:?} {input:?}");
        }
    }
}
