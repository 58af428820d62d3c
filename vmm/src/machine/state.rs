//! What the vCPUs of a machine do, and what each request means then. Pure: no I/O, no clock.
//!
//! ```text
//! Building ─ entered ─▶ Running ◀─ unpause ─ pause ─▶ Paused
//!                          │                            │
//!                          └─ suspend ─▶ Suspending ◀───┘     a failed or cancelled suspend goes
//!                                                             back to where it came from
//! ```
//!
//! The end of the process is no state: whatever ends it ends it from any of these.

use vmm_control::RunState;

/// What the vCPUs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// They were told to run, but not all have been entered.
    Building,
    /// They run.
    Running,
    /// Halted by request.
    Paused,
    /// Halted, and being saved.
    Suspending {
        /// Where a suspend that fails leads back to.
        from: Resting,
    },
}

/// A state that lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resting {
    /// See [`State::Running`].
    Running,
    /// See [`State::Paused`].
    Paused,
}

/// What happens to the state.
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
    /// The suspend under way has failed or was cancelled.
    SuspendFailed,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing: it is so already.
    Nothing,
    /// Halt the vCPUs.
    Halt,
    /// Let them run.
    Run,
    /// Save; halt the vCPUs first if they run.
    Save,
    /// Refuse: a suspend is under way.
    Refuse,
}

impl State {
    /// As the control socket names it.
    #[must_use]
    pub fn shown(self) -> RunState {
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

/// Decides what an input means. The caller carries the action out and, only if that succeeds, takes the
/// new state.
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
                from: Resting::Running,
            },
            Action::Save,
        ),
        (Paused, Input::Suspend) => (
            Suspending {
                from: Resting::Paused,
            },
            Action::Save,
        ),
        (
            Suspending {
                from: Resting::Running,
            },
            SuspendFailed,
        ) => (Running, Action::Run),
        (
            Suspending {
                from: Resting::Paused,
            },
            SuspendFailed,
        ) => (Paused, Action::Nothing),
        (Suspending { .. }, Pause | Unpause | Input::Suspend) => (state, Action::Refuse),
        // Paused before the last vCPU had been entered, or a request for what is so already.
        (_, Entered | SuspendFailed) | (Paused, Pause) | (Running | Building, Unpause) => {
            (state, Action::Nothing)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUSPENDING: State = State::Suspending {
        from: Resting::Running,
    };
    const SUSPENDING_PAUSED: State = State::Suspending {
        from: Resting::Paused,
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
