//! The state of a machine's vCPUs, and the effect of each request on it. Pure: no I/O, no clock.
//!
//! ```text
//! Building ─ entered ─▶ Running ─ pause, suspend ─▶ Halting ─ halted ─▶ Paused, Suspending
//!                          ▲                           │                   │         │
//!                          └──── halt failed ──────────┘                   │         │
//!                          └──── unpause ──────────────────────────────────┘         │
//!                          └──── suspend failed (or back to Paused) ─────────────────┘
//! Paused ─ suspend ─▶ Suspending
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
    /// Asked to halt; some may still run.
    Halting {
        /// What follows.
        then: Then,
    },
    /// Halted by request.
    Paused,
    /// Halted, and being saved.
    Suspending {
        /// The state to which a failed suspend returns.
        from: Stable,
    },
}

/// What a halt is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// A pause.
    Pause,
    /// A suspend.
    Save,
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
    /// vCPUs and disks are at rest.
    Halted,
    /// They did not come to rest in time, or the request was cancelled.
    HaltFailed,
    /// The suspend in progress has failed or was cancelled.
    SuspendFailed,
}

/// What the caller has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing: the state is already as requested.
    Nothing,
    /// Halt the vCPUs and hold the disks.
    Halt,
    /// Let them run.
    Run,
    /// Save.
    Save,
    /// Refuse: a suspend or another halt is in progress.
    Refuse,
}

impl State {
    /// Its name on the control socket.
    #[must_use]
    pub fn run_state(self) -> RunState {
        match self {
            Self::Building => RunState::Building,
            Self::Running | Self::Halting { then: Then::Pause } => RunState::Running,
            Self::Paused => RunState::Paused,
            Self::Halting { then: Then::Save } | Self::Suspending { .. } => RunState::Suspending,
        }
    }

    /// Whether vCPUs may run, and devices are served.
    #[must_use]
    pub fn is_running(self) -> bool {
        matches!(self, Self::Building | Self::Running | Self::Halting { .. })
    }
}

/// Returns the next state and the action that leads to it. The caller carries the action out, and changes
/// the state only if that succeeds.
#[must_use]
pub fn apply(state: State, input: Input) -> (State, Action) {
    use Input::{Entered, HaltFailed, Halted, Pause, Suspend, SuspendFailed, Unpause};
    use State::{Building, Halting, Paused, Running, Suspending};
    match (state, input) {
        (Building, Entered) => (Running, Action::Nothing),
        (Running | Building, Pause) => (Halting { then: Then::Pause }, Action::Halt),
        (Running | Building, Suspend) => (Halting { then: Then::Save }, Action::Halt),
        (Halting { then: Then::Pause }, Halted) => (Paused, Action::Nothing),
        (Halting { then: Then::Save }, Halted) => {
            let from = Stable::Running;
            (Suspending { from }, Action::Save)
        }
        (Halting { .. }, HaltFailed) | (Paused, Unpause) => (Running, Action::Run),
        (Paused, Suspend) => {
            let from = Stable::Paused;
            (Suspending { from }, Action::Save)
        }
        (Suspending { from }, SuspendFailed) => match from {
            Stable::Running => (Running, Action::Run),
            Stable::Paused => (Paused, Action::Nothing),
        },
        (Suspending { .. } | Halting { .. }, Pause | Unpause | Suspend) => (state, Action::Refuse),
        // All have been entered before the first halts; the rest is already as requested, or too late.
        (_, Entered | Halted | HaltFailed | SuspendFailed)
        | (Paused, Pause)
        | (Running | Building, Unpause) => (state, Action::Nothing),
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
    const TO_PAUSE: State = State::Halting { then: Then::Pause };
    const TO_SAVE: State = State::Halting { then: Then::Save };
    const STATES: [State; 7] = [
        State::Building,
        State::Running,
        TO_PAUSE,
        TO_SAVE,
        State::Paused,
        SUSPENDING,
        SUSPENDING_PAUSED,
    ];

    /// What each input leads to, in the order of [`STATES`].
    fn row(input: Input) -> [(State, Action); 7] {
        STATES.map(|state| apply(state, input))
    }

    #[test]
    fn every_state_and_input_has_its_step() {
        use Action::{Halt, Nothing, Refuse, Run, Save};
        use State::{Paused, Running};
        let unchanged = STATES.map(|state| (state, Nothing));
        let with = |changes: &[(usize, (State, Action))]| {
            let mut row = unchanged;
            for (at, step) in changes {
                row[*at] = *step;
            }
            row
        };
        let refused = [2, 3, 5, 6].map(|at| (at, (STATES[at], Refuse)));
        let refusing = |changes: &[(usize, (State, Action))]| with(&[&refused, changes].concat());
        assert_eq!(row(Input::Entered), with(&[(0, (Running, Nothing))]));
        assert_eq!(
            row(Input::Pause),
            refusing(&[(0, (TO_PAUSE, Halt)), (1, (TO_PAUSE, Halt))])
        );
        assert_eq!(row(Input::Unpause), refusing(&[(4, (Running, Run))]));
        assert_eq!(
            row(Input::Suspend),
            refusing(&[
                (0, (TO_SAVE, Halt)),
                (1, (TO_SAVE, Halt)),
                (4, (SUSPENDING_PAUSED, Save)),
            ])
        );
        assert_eq!(
            row(Input::Halted),
            with(&[(2, (Paused, Nothing)), (3, (SUSPENDING, Save))])
        );
        assert_eq!(
            row(Input::HaltFailed),
            with(&[(2, (Running, Run)), (3, (Running, Run))])
        );
        assert_eq!(
            row(Input::SuspendFailed),
            with(&[(5, (Running, Run)), (6, (Paused, Nothing))])
        );
    }
}
