//! A machine's events: the only place that makes them.

use machine_api::{EventRequest, EventType, MachineEvent, StartKind, Timing};

use crate::model::state::State;
use crate::{clock, ids};

/// Who caused an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Source {
    /// A request of a user.
    User,
    /// The supervisor by itself.
    #[default]
    Supervisor,
    /// The guest.
    Guest,
}

impl Source {
    /// Its name in the Fly Machines API, whose supervisor is called flyd.
    const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Supervisor => "flyd",
            Self::Guest => "guest",
        }
    }
}

/// What an event says.
#[derive(Debug, Default)]
pub(crate) struct EventDetails {
    /// Its type, if that is not the usual one of its transition.
    pub(crate) kind: Option<EventType>,
    /// Who caused it.
    pub(crate) source: Source,
    /// How long its transition took.
    pub(crate) timing: Option<Timing>,
    /// How a start went.
    pub(crate) start: Option<StartKind>,
    /// For people.
    pub(crate) message: Option<String>,
    /// The exit of a main process.
    pub(crate) request: Option<EventRequest>,
}

impl EventDetails {
    /// For an event that `source` causes.
    pub(crate) fn caused_by(source: Source) -> Self {
        Self {
            source,
            ..Self::default()
        }
    }
}

/// An event that happens now to a machine in `state`; `kind` unless `details` names another.
pub(crate) fn new(kind: EventType, state: State, details: EventDetails) -> MachineEvent {
    let EventDetails {
        kind: other_kind,
        source,
        timing,
        start,
        message,
        request,
    } = details;
    MachineEvent {
        id: ids::new_ulid(),
        kind: other_kind.unwrap_or(kind),
        status: state.name().to_owned(),
        source: source.name().to_owned(),
        timestamp: clock::realtime_ms(),
        request,
        duration_ms: timing.as_ref().map(|timing| timing.total_ms),
        phases: timing.map(|timing| timing.phases).unwrap_or_default(),
        start,
        message,
    }
}

/// The event of a new version. Clients of the Fly Machines API count starts since the last one.
pub(crate) fn launch() -> MachineEvent {
    let details = EventDetails::caused_by(Source::User);
    new(EventType::Launch, State::Created, details)
}

/// The event of a machine that was taken back from its folder.
pub(crate) fn taken_back(state: State, message: String) -> MachineEvent {
    let details = EventDetails {
        message: Some(message),
        ..EventDetails::caused_by(Source::User)
    };
    new(EventType::Adopt, state, details)
}

/// A warning of the supervisor's own about a machine in `state`.
pub(crate) fn warning(state: State, message: String) -> MachineEvent {
    let details = EventDetails {
        message: Some(message),
        ..EventDetails::default()
    };
    new(EventType::Warning, state, details)
}
