//! What a supervisor has to do about a machine that it finds in some state: after its own start, or
//! after a transition that could not go on.

use crate::model::state::State;

/// The image of a machine whose VMM has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeftImage {
    /// There is none.
    None,
    /// The VMM has written it: its guest is in there.
    Own,
    /// An earlier one has written it, and the one that ended was restored from it. That was never durable,
    /// so nothing has left its guest; the machine goes on from the image as if it had not been resumed.
    Earlier {
        /// The generation that wrote it.
        generation: u64,
    },
}

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
    /// Record that it was started, and that its VMM ended.
    RecordShortRun,
    /// Continue suspending.
    Suspend,
    /// Its image is whole: it is suspended.
    Suspended,
    /// It is suspended in an image of an earlier generation.
    SuspendedAgain {
        /// The generation that wrote it.
        generation: u64,
        /// It was started, and is resumed again.
        resume: bool,
    },
    /// Continue stopping.
    Stop,
    /// Continue restarting.
    Restart,
    /// Continue updating.
    Update,
    /// Continue destroying.
    Destroy,
}

/// Decides by the stored state, whether its VMM is `alive`, and, if not, which image there is and whether
/// the guest has `powered_off` by itself: then it has done what it was started for.
pub(crate) fn recovery(state: State, alive: bool, image: LeftImage, powered_off: bool) -> Recovery {
    match (state, alive) {
        (State::Created | State::Suspended | State::Stopped | State::Failed, false)
        | (State::Destroyed, false) => Recovery::Nothing,
        (
            State::Created | State::Suspended | State::Stopped | State::Failed | State::Destroyed,
            true,
        ) => Recovery::Kill,
        (State::Starting | State::Started, true) => Recovery::Adopt,
        (State::Starting, false) if powered_off => Recovery::RecordShortRun,
        (State::Starting, false) => Recovery::Start,
        (State::Suspending, true) => Recovery::Suspend,
        (State::Started | State::Suspending, false) => match image {
            LeftImage::None => Recovery::RecordEnd,
            LeftImage::Own => Recovery::Suspended,
            LeftImage::Earlier { generation } => Recovery::SuspendedAgain {
                generation,
                resume: state == State::Started,
            },
        },
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
        let alive = State::ALL.map(|state| recovery(state, true, LeftImage::None, false));
        let gone = State::ALL.map(|state| recovery(state, false, LeftImage::None, false));
        use Recovery::{
            Adopt, Destroy, Kill, Nothing, RecordEnd, RecordShortRun, Restart, Start, Stop,
            Suspend, Suspended, SuspendedAgain, Update,
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
        for image in [LeftImage::Own, LeftImage::Earlier { generation: 3 }] {
            for (state, without) in State::ALL.into_iter().zip(gone) {
                let resume = state == State::Started;
                let expected = match (state, image) {
                    (State::Started | State::Suspending, LeftImage::Own) => Suspended,
                    (State::Started | State::Suspending, LeftImage::Earlier { generation }) => {
                        SuspendedAgain { generation, resume }
                    }
                    _ => without,
                };
                assert_eq!(
                    recovery(state, false, image, false),
                    expected,
                    "{}",
                    state.name()
                );
            }
        }
        for (state, without) in State::ALL.into_iter().zip(gone) {
            let expected = match state {
                State::Starting => RecordShortRun,
                _ => without,
            };
            assert_eq!(recovery(state, false, LeftImage::None, true), expected);
        }
    }
}
