//! The states of a Machine and the only legal steps between them.
//!
//! Pure: the driver applies an event, stores the new state, and then acts.
//!
//! ```text
//!                 ┌────────────── restarting ◀───────────┐
//!                 ▼                                      │
//!   created ─▶ starting ─▶ started ─▶ suspending ─▶ suspended ─▶ (starting)
//!                 │  ▲         │           │
//!                 ▼  │         ▼           ▼
//!              failed └─ stopped ◀── stopping        updating ─▶ stopped
//!
//!   every state ─▶ destroying ─▶ destroyed
//! ```

/// The state of a machine. Names in -ing are transitions, which the driver carries out.
///
/// `machine_api::MachineState` has the same names. Two types on purpose: a state that the API shows
/// differently one day must not change what is stored and decided here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Stored, never started.
    Created,
    /// A cold boot or a resume is under way.
    Starting,
    /// A readiness check has succeeded.
    Started,
    /// The VMM is saving it.
    Suspending,
    /// Only an image is left.
    Suspended,
    /// The guest is shutting down.
    Stopping,
    /// No VMM, no image.
    Stopped,
    /// Stopping in order to start again.
    Restarting,
    /// Stopping in order to take a new configuration.
    Updating,
    /// Being removed.
    Destroying,
    /// Removed; only its row is left, for a while.
    Destroyed,
    /// Could not be started.
    Failed,
}

impl State {
    /// All of them.
    pub(crate) const ALL: [Self; 12] = [
        Self::Created,
        Self::Starting,
        Self::Started,
        Self::Suspending,
        Self::Suspended,
        Self::Stopping,
        Self::Stopped,
        Self::Restarting,
        Self::Updating,
        Self::Destroying,
        Self::Destroyed,
        Self::Failed,
    ];

    /// Whether it is a transition.
    pub(crate) const fn is_transition(self) -> bool {
        matches!(
            self,
            Self::Starting
                | Self::Suspending
                | Self::Stopping
                | Self::Restarting
                | Self::Updating
                | Self::Destroying
        )
    }

    /// The name under which it is stored and shown.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Restarting => "restarting",
            Self::Updating => "updating",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
            Self::Failed => "failed",
        }
    }

    /// The state of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Something that moves a machine from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A VMM is about to be launched, for a boot or a resume.
    StartBegun,
    /// The readiness check succeeded.
    Ready,
    /// The start failed.
    StartFailed,
    /// The resume failed before it consumed its image: the machine is suspended as before.
    StartRolledBack,
    /// The VMM is about to be asked for a suspend.
    SuspendBegun,
    /// The image is whole and the VMM has ended.
    SuspendDone,
    /// The suspend failed or was cancelled; the guest runs on.
    SuspendAbandoned,
    /// The guest is about to be shut down.
    StopBegun,
    /// No VMM and no image are left.
    Halted,
    /// The VMM found the image's memory damaged and ended the guest.
    Broken,
    /// The guest is about to be shut down in order to start again.
    RestartBegun,
    /// A new configuration is about to be taken.
    UpdateBegun,
    /// The machine is about to be removed.
    DestroyBegun,
    /// Nothing of it is left.
    DestroyDone,
}

impl Event {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 14] = [
        Self::StartBegun,
        Self::Ready,
        Self::StartFailed,
        Self::StartRolledBack,
        Self::SuspendBegun,
        Self::SuspendDone,
        Self::SuspendAbandoned,
        Self::StopBegun,
        Self::Halted,
        Self::Broken,
        Self::RestartBegun,
        Self::UpdateBegun,
        Self::DestroyBegun,
        Self::DestroyDone,
    ];
}

/// An event that is impossible in a state: a defect of the driver, never of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("event {event:?} is impossible for a machine that is {}", state.name())]
pub(crate) struct Unexpected {
    /// The machine's state.
    pub(crate) state: State,
    /// The event.
    pub(crate) event: Event,
}

/// Decides where `event` leads from `state`.
///
/// Events of an earlier VMM must be dropped before this call: a late [`Event::Halted`] would
/// otherwise stop a machine that has just been resumed.
pub(crate) fn apply(state: State, event: Event) -> Result<State, Unexpected> {
    use Event as E;
    use State as S;
    match (event, state) {
        // After a refused image the start begins again as a cold boot: starting to starting.
        (
            E::StartBegun,
            S::Created
            | S::Starting
            | S::Suspended
            | S::Stopped
            | S::Restarting
            | S::Updating
            | S::Failed,
        ) => Ok(S::Starting),
        (E::Ready, S::Starting) | (E::SuspendAbandoned, S::Suspending) => Ok(S::Started),
        (E::StartFailed, S::Starting) => Ok(S::Failed),
        // A suspend that was given up may turn out to be complete.
        (E::StartRolledBack, S::Starting) | (E::SuspendDone, S::Started | S::Suspending) => {
            Ok(S::Suspended)
        }
        (E::SuspendBegun, S::Started) => Ok(S::Suspending),
        (
            E::StopBegun,
            S::Starting | S::Started | S::Suspending | S::Suspended | S::Restarting | S::Failed,
        ) => Ok(S::Stopping),
        // The guest may power itself off at any time, also while it is being suspended.
        (E::Halted, S::Started | S::Suspending | S::Stopping | S::Updating) => Ok(S::Stopped),
        (E::Broken, S::Started | S::Suspending | S::Stopping | S::Updating) => Ok(S::Failed),
        (E::RestartBegun, S::Started | S::Suspended) => Ok(S::Restarting),
        (E::UpdateBegun, S::Created | S::Started | S::Suspended | S::Stopped | S::Failed) => {
            Ok(S::Updating)
        }
        (
            E::DestroyBegun,
            S::Created
            | S::Starting
            | S::Started
            | S::Suspending
            | S::Suspended
            | S::Stopping
            | S::Stopped
            | S::Restarting
            | S::Updating
            | S::Failed,
        ) => Ok(S::Destroying),
        (E::DestroyDone, S::Destroying) => Ok(S::Destroyed),
        (event, state) => Err(Unexpected { state, event }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row per event: the states in the order of [`State::ALL`], `-` where it can't happen.
    const TABLE: [(Event, &str); 14] = [
        // create starting started suspng suspnd stopping stopped restrt updtng destrng destrd failed
        (
            Event::StartBegun,
            "starting starting - - starting - starting starting starting - - starting",
        ),
        (Event::Ready, "- started - - - - - - - - - -"),
        (Event::StartFailed, "- failed - - - - - - - - - -"),
        (Event::StartRolledBack, "- suspended - - - - - - - - - -"),
        (Event::SuspendBegun, "- - suspending - - - - - - - - -"),
        (
            Event::SuspendDone,
            "- - suspended suspended - - - - - - - -",
        ),
        (Event::SuspendAbandoned, "- - - started - - - - - - - -"),
        (
            Event::StopBegun,
            "- stopping stopping stopping stopping - - stopping - - - stopping",
        ),
        (
            Event::Halted,
            "- - stopped stopped - stopped - - stopped - - -",
        ),
        (Event::Broken, "- - failed failed - failed - - failed - - -"),
        (
            Event::RestartBegun,
            "- - restarting - restarting - - - - - - -",
        ),
        (
            Event::UpdateBegun,
            "updating - updating - updating - updating - - - - updating",
        ),
        (
            Event::DestroyBegun,
            "destroying destroying destroying destroying destroying destroying destroying \
             destroying destroying - - destroying",
        ),
        (Event::DestroyDone, "- - - - - - - - - destroyed - -"),
    ];

    #[test]
    fn every_pair_of_state_and_event_leads_where_the_table_says() {
        assert_eq!(TABLE.map(|(event, _)| event), Event::ALL);
        for (event, row) in TABLE {
            let cells: Vec<&str> = row.split_whitespace().collect();
            assert_eq!(cells.len(), State::ALL.len(), "{event:?}");
            for (state, cell) in State::ALL.into_iter().zip(cells) {
                let expected = State::from_name(cell).ok_or(Unexpected { state, event });
                assert_eq!(
                    apply(state, event),
                    expected,
                    "{event:?} in {}",
                    state.name()
                );
            }
        }
    }

    #[test]
    fn nothing_leaves_destroyed() {
        for event in Event::ALL {
            assert!(apply(State::Destroyed, event).is_err());
        }
    }

    #[test]
    fn names_are_those_of_the_api() {
        let api = machine_api::MachineState::ALL.map(machine_api::MachineState::name);
        assert_eq!(State::ALL.map(State::name), api);
    }
}
