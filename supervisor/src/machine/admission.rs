//! Whether a request is taken up, already satisfied, joined with one under way, or refused.
//!
//! Pure: the driver asks, then acts. Leases and tokens were checked before.

use crate::machine::state::State;

/// What a user can ask of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Be started, from whatever there is.
    Start,
    /// Be suspended.
    Suspend,
    /// Be stopped.
    Stop,
    /// Be stopped and started.
    Restart,
    /// Take a new configuration.
    Update,
    /// Be removed; with `force` also while it runs.
    Destroy {
        /// Kill it where needed.
        force: bool,
    },
}

/// The answer to a [`Wish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The driver takes it up, breaking off what is under way.
    Accept,
    /// It is so already.
    Satisfied,
    /// That very thing is under way.
    Join,
    /// Not in this state.
    Refuse(RefusalReason),
}

/// Why a wish can't be granted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RefusalReason {
    /// Another transition has to end first.
    #[error("another transition is under way")]
    Busy,
    /// It needs a running guest.
    #[error("it has no running guest")]
    NotRunning,
    /// Its guest runs, and is not ours to talk to yet: it is being taken over.
    #[error("its guest can't be reached yet (it is being taken over; try again)")]
    OutOfReach,
    /// Removing it would kill a running guest.
    #[error("it has a running guest (stop it first, or force)")]
    Running,
    /// It is removed, or about to be.
    #[error("it is destroyed")]
    Gone,
}

/// Decides about `wish` for a machine in `state`.
pub(crate) fn admit(state: State, wish: Wish) -> Admission {
    use Admission::{Accept, Join, Refuse, Satisfied};
    use RefusalReason::{Busy, Gone, NotRunning, Running};
    use State as S;
    match (wish, state) {
        (Wish::Destroy { .. }, S::Destroyed)
        | (Wish::Start, S::Started)
        | (Wish::Suspend, S::Suspended)
        | (Wish::Stop, S::Created | S::Stopped) => Satisfied,

        (Wish::Destroy { .. }, S::Destroying)
        | (Wish::Start, S::Starting | S::Restarting)
        | (Wish::Suspend, S::Suspending)
        | (Wish::Stop, S::Stopping)
        | (Wish::Restart, S::Restarting) => Join,

        (_, S::Destroying | S::Destroyed) => Refuse(Gone),

        // A start that meets a suspend breaks it off: the same process goes on.
        (Wish::Start, S::Created | S::Suspending | S::Suspended | S::Stopped | S::Failed)
        | (Wish::Suspend, S::Started)
        | (
            Wish::Stop,
            S::Starting | S::Started | S::Suspending | S::Suspended | S::Restarting | S::Failed,
        )
        | (Wish::Restart, S::Created | S::Started | S::Suspended | S::Stopped | S::Failed)
        | (Wish::Update, S::Created | S::Started | S::Suspended | S::Stopped | S::Failed)
        | (Wish::Destroy { force: true }, _)
        | (Wish::Destroy { force: false }, S::Created | S::Suspended | S::Stopped | S::Failed) => {
            Accept
        }

        (Wish::Destroy { force: false }, S::Started) => Refuse(Running),

        (Wish::Suspend, S::Created | S::Stopped | S::Failed) => Refuse(NotRunning),

        (Wish::Start, S::Stopping | S::Updating)
        | (Wish::Suspend, S::Starting | S::Stopping | S::Restarting | S::Updating)
        | (Wish::Stop, S::Updating)
        | (
            Wish::Restart | Wish::Update,
            S::Starting | S::Suspending | S::Stopping | S::Restarting | S::Updating,
        )
        | (
            Wish::Destroy { force: false },
            S::Starting | S::Suspending | S::Stopping | S::Restarting | S::Updating,
        ) => Refuse(Busy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WISHES: [Wish; 7] = [
        Wish::Start,
        Wish::Suspend,
        Wish::Stop,
        Wish::Restart,
        Wish::Update,
        Wish::Destroy { force: false },
        Wish::Destroy { force: true },
    ];

    /// One row per wish, the states in the order of [`State::ALL`]: Accept, Satisfied, Join,
    /// busy, not Running, running (!), Gone.
    const TABLE: [&str; 7] = [
        // created starting started suspending suspended stopping stopped restarting updating
        // destroying destroyed failed
        "A J S A A b A J b g g A",
        "n b A J S b n b b g g n",
        "S A A A A J S A b g g A",
        "A b A b A b A J b g g A",
        "A b A b A b A b b g g A",
        "A b ! b A b A b b J S A",
        "A A A A A A A A A J S A",
    ];

    #[test]
    fn every_wish_in_every_state_is_answered_as_the_table_says() {
        for (wish, row) in WISHES.into_iter().zip(TABLE) {
            for (state, cell) in State::ALL.into_iter().zip(row.split(' ')) {
                let expected = match cell {
                    "A" => Admission::Accept,
                    "S" => Admission::Satisfied,
                    "J" => Admission::Join,
                    "b" => Admission::Refuse(RefusalReason::Busy),
                    "n" => Admission::Refuse(RefusalReason::NotRunning),
                    "!" => Admission::Refuse(RefusalReason::Running),
                    _ => Admission::Refuse(RefusalReason::Gone),
                };
                assert_eq!(admit(state, wish), expected, "{wish:?} in {}", state.name());
            }
        }
    }
}
