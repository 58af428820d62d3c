//! Whether a command is carried out, is satisfied already, joins the same one under way, or is refused.
//!
//! Pure: the driver asks, then acts. Tokens and leases are checked before.

use crate::model::state::State;

/// What a machine can be told to do, as far as admission is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandKind {
    /// Start from the image, or boot.
    Start,
    /// Suspend.
    Suspend,
    /// Stop.
    Stop,
    /// Stop and start.
    Restart,
    /// Take a new configuration.
    Update,
    /// Remove it.
    Destroy {
        /// Even while its guest runs, which is killed.
        force: bool,
    },
}

/// The answer to a [`CommandKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The driver carries it out, and interrupts the transition under way.
    Accept,
    /// The machine is in the wanted state already.
    Satisfied,
    /// The same transition is under way.
    Join,
    /// Not possible in this state.
    Refuse(RefusalReason),
}

/// Why a command cannot be carried out now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RefusalReason {
    /// Another transition has to end first.
    #[error("another transition is under way")]
    Busy,
    /// It needs a running guest.
    #[error("it has no running guest")]
    NotRunning,
    /// Its guest runs, but this supervisor has not connected to it yet.
    #[error("its guest cannot be reached yet (the supervisor is connecting to it; try again)")]
    NotConnected,
    /// Removing it would kill a running guest.
    #[error("it has a running guest (stop it first, or force)")]
    Running,
    /// It is destroyed, or being destroyed.
    #[error("it is destroyed")]
    Gone,
}

/// Decides about `command` for a machine in `state`.
pub(crate) fn admit(state: State, command: CommandKind) -> Admission {
    use Admission::{Accept, Join, Refuse, Satisfied};
    use RefusalReason::{Busy, Gone, NotRunning, Running};
    use State as S;
    match (command, state) {
        (CommandKind::Destroy { .. }, S::Destroyed)
        | (CommandKind::Start, S::Started)
        | (CommandKind::Suspend, S::Suspended)
        | (CommandKind::Stop, S::Created | S::Stopped) => Satisfied,

        (CommandKind::Destroy { .. }, S::Destroying)
        | (CommandKind::Start, S::Starting | S::Restarting)
        | (CommandKind::Suspend, S::Suspending)
        | (CommandKind::Stop, S::Stopping)
        | (CommandKind::Restart, S::Restarting) => Join,

        (_, S::Destroying | S::Destroyed) => Refuse(Gone),

        // A start cancels a suspend under way: the same VMM runs on.
        (
            CommandKind::Start,
            S::Created | S::Suspending | S::Suspended | S::Stopped | S::Failed,
        )
        | (CommandKind::Suspend, S::Started)
        | (
            CommandKind::Stop,
            S::Starting | S::Started | S::Suspending | S::Suspended | S::Restarting | S::Failed,
        )
        | (CommandKind::Restart, S::Created | S::Started | S::Suspended | S::Stopped | S::Failed)
        | (CommandKind::Update, S::Created | S::Started | S::Suspended | S::Stopped | S::Failed)
        | (CommandKind::Destroy { force: true }, _)
        | (
            CommandKind::Destroy { force: false },
            S::Created | S::Suspended | S::Stopped | S::Failed,
        ) => Accept,

        (CommandKind::Destroy { force: false }, S::Started) => Refuse(Running),

        (CommandKind::Suspend, S::Created | S::Stopped | S::Failed) => Refuse(NotRunning),

        (CommandKind::Start, S::Stopping | S::Updating)
        | (CommandKind::Suspend, S::Starting | S::Stopping | S::Restarting | S::Updating)
        | (CommandKind::Stop, S::Updating)
        | (
            CommandKind::Restart | CommandKind::Update,
            S::Starting | S::Suspending | S::Stopping | S::Restarting | S::Updating,
        )
        | (
            CommandKind::Destroy { force: false },
            S::Starting | S::Suspending | S::Stopping | S::Restarting | S::Updating,
        ) => Refuse(Busy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMANDS: [CommandKind; 7] = [
        CommandKind::Start,
        CommandKind::Suspend,
        CommandKind::Stop,
        CommandKind::Restart,
        CommandKind::Update,
        CommandKind::Destroy { force: false },
        CommandKind::Destroy { force: true },
    ];

    /// One row per command, the states in the order of [`State::ALL`]: Accept, Satisfied, Join,
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
    fn every_command_in_every_state_is_answered_as_the_table_says() {
        for (command, row) in COMMANDS.into_iter().zip(TABLE) {
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
                assert_eq!(
                    admit(state, command),
                    expected,
                    "{command:?} in {}",
                    state.name()
                );
            }
        }
    }
}
