//! What a supervisor has to do about a machine that it finds in some state: after its own start, or
//! after a transition that could not go on.

use crate::model::state::State;

/// What is done about a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// Nothing.
    Nothing,
    /// Kill its VMM: in this state there should be none.
    Kill,
    /// Connect to its VMM and check readiness; then it is started.
    Adopt,
    /// Start it, from its image or by a boot.
    Start,
    /// Record that its VMM ended.
    RecordEnd,
    /// Continue suspending.
    Suspend,
    /// Its image is whole: it is suspended.
    Suspended,
    /// Continue stopping.
    Stop,
    /// Continue restarting.
    Restart,
    /// Continue updating.
    Update,
    /// Continue destroying.
    Destroy,
}

/// Decides by the stored state, whether its VMM is `alive`, and whether that has left a whole image
/// (`suspended`).
pub(crate) fn recovery(state: State, alive: bool, suspended: bool) -> Recovery {
    match (state, alive) {
        (State::Created | State::Suspended | State::Stopped | State::Failed, false)
        | (State::Destroyed, false) => Recovery::Nothing,
        (
            State::Created | State::Suspended | State::Stopped | State::Failed | State::Destroyed,
            true,
        ) => Recovery::Kill,
        (State::Starting | State::Started, true) => Recovery::Adopt,
        (State::Starting, false) => Recovery::Start,
        (State::Started, false) => Recovery::RecordEnd,
        (State::Suspending, true) => Recovery::Suspend,
        (State::Suspending, false) if suspended => Recovery::Suspended,
        (State::Suspending, false) => Recovery::RecordEnd,
        (State::Stopping, _) => Recovery::Stop,
        (State::Restarting, _) => Recovery::Restart,
        (State::Updating, _) => Recovery::Update,
        (State::Destroying, _) => Recovery::Destroy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_with_and_without_a_vmm_has_its_recovery() {
        let alive = State::ALL.map(|state| recovery(state, true, false));
        let gone = State::ALL.map(|state| recovery(state, false, false));
        use Recovery::{
            Adopt, Destroy, Kill, Nothing, RecordEnd, Restart, Start, Stop, Suspend, Suspended,
            Update,
        };
        assert_eq!(
            alive,
            [
                Kill, Adopt, Adopt, Suspend, Kill, Stop, Kill, Restart, Update, Destroy, Kill, Kill
            ]
        );
        assert_eq!(
            gone,
            [
                Nothing, Start, RecordEnd, RecordEnd, Nothing, Stop, Nothing, Restart, Update,
                Destroy, Nothing, Nothing
            ]
        );
        assert_eq!(recovery(State::Suspending, false, true), Suspended);
    }
}
