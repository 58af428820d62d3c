//! How a machine's state is changed, stored and shown: the driver's only way to do so.
//!
//! Every step goes through the table of [`crate::machine::state`], becomes an event, is written
//! to the database and then published as a whole.

use std::sync::Arc;

use machine_api::{CheckStatus, EventRequest, EventType, MachineEvent, StartKind, Timing};

use crate::machine::driver::Driver;
use crate::machine::handle::Envelope;
use crate::machine::state::{Event, State, apply};
use crate::machine::{MachineError, record, view};
use crate::store::{Change, MachineRecord};
use crate::{clock, fail_point};

/// Events kept in a machine's view.
const SHOWN_EVENTS: usize = 30;

/// What an event says besides the state it led to.
#[derive(Debug, Default)]
pub(super) struct Note {
    pub(super) kind: Option<EventType>,
    pub(super) source: Source,
    pub(super) timing: Option<Timing>,
    pub(super) start: Option<StartKind>,
    pub(super) message: Option<String>,
    pub(super) request: Option<EventRequest>,
}

impl Note {
    /// About a step that somebody's request caused, or else the supervisor.
    pub(super) fn by(envelope: Option<&Envelope>) -> Self {
        Self {
            source: envelope.map_or(Source::Supervisor, Envelope::source),
            ..Self::default()
        }
    }
}

/// Who caused an event.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum Source {
    /// A request.
    User,
    /// The supervisor by itself.
    #[default]
    Supervisor,
    /// The guest.
    Guest,
}

impl Driver {
    /// A check has run: shown, and told as an event where its result changed.
    pub(super) fn note_check(&mut self, generation: u64, status: CheckStatus) {
        // A check that a suspend or a stop cut off fails late and says nothing about what runs now.
        let runs = self.record.state == State::Started && self.session.is_some();
        if !runs || generation != self.record.generation {
            return;
        }
        let known = self
            .checks
            .iter_mut()
            .find(|known| known.name == status.name);
        let changed = known
            .as_ref()
            .is_none_or(|known| known.status != status.status);
        let message = format!(
            "check {} is {}: {}",
            status.name, status.status, status.output
        );
        match known {
            Some(known) => *known = status,
            None => self.checks.push(status),
        }
        if changed {
            self.add_event(EventType::Check, message);
        } else {
            self.show(None);
        }
    }

    /// Moves to where `event` leads: stored first, then shown.
    pub(super) async fn transition(
        &mut self,
        event: Event,
        note: Note,
        edit: impl FnOnce(&mut MachineRecord),
    ) -> Result<(), MachineError> {
        let (next, shown, mut changes) = self.prepare(event, note, edit)?;
        if next.instance_id != self.record.instance_id {
            changes.push(Change::Version(Box::new(next.clone())));
        }
        self.host
            .store
            .commit("store the machine's new state", changes)
            .await?;
        self.record = next;
        self.show(Some(shown));
        Ok(())
    }

    /// Moves to where `event` leads: shown at once, stored in the background. For the ends of
    /// transitions, which a new supervisor would find out by itself.
    pub(super) fn transition_soon(
        &mut self,
        event: Event,
        note: Note,
        edit: impl FnOnce(&mut MachineRecord),
    ) {
        match self.prepare(event, note, edit) {
            Ok((next, shown, changes)) => {
                self.commit_soon("store the machine's new state", changes);
                self.record = next;
                self.show(Some(shown));
            }
            Err(error) => tracing::error!(machine_id = self.record.id, %error, "impossible step"),
        }
    }

    fn prepare(
        &self,
        event: Event,
        note: Note,
        edit: impl FnOnce(&mut MachineRecord),
    ) -> Result<(MachineRecord, MachineEvent, Vec<Change>), MachineError> {
        let state = apply(self.record.state, event).map_err(|unexpected| MachineError::Failed {
            id: self.record.id.clone(),
            state: view::wire_state(self.record.state),
            message: unexpected.to_string(),
        })?;
        let mut next = self.record.clone();
        edit(&mut next);
        next.state = state;
        next.updated_at_ms = clock::realtime_ms();
        let shown = note.into_event(state, kind_of(event));
        let mut changes = vec![
            Change::Machine(Box::new(next.clone())),
            Change::Event(next.id.clone(), Box::new(shown.0.clone())),
        ];
        if let Some(timing) = shown.1 {
            changes.push(Change::Timing(next.id.clone(), Box::new(timing)));
        }
        Ok((next, shown.0, changes))
    }

    /// Publishes the machine as it is now, with `event` as its newest.
    pub(super) fn show(&mut self, event: Option<MachineEvent>) {
        if let Some(event) = event {
            self.events.push_front(event);
            self.events.truncate(SHOWN_EVENTS);
        }
        self.view.send_replace(Arc::new(view::machine(
            &self.record,
            &self.events,
            &self.checks,
        )));
    }

    /// Adds an event that is no transition.
    pub(super) fn add_event(&mut self, kind: EventType, message: String) {
        let note = Note {
            message: Some(message),
            ..Note::default()
        };
        let (event, _) = note.into_event(self.record.state, kind);
        let change = Change::Event(self.record.id.clone(), Box::new(event.clone()));
        self.commit_soon("store an event", vec![change]);
        self.show(Some(event));
    }

    /// Adds the event of a new version.
    pub(super) fn add_launch(&mut self) {
        let event = record::launch();
        let change = Change::Event(self.record.id.clone(), Box::new(event.clone()));
        self.commit_soon("store an event", vec![change]);
        self.show(Some(event));
    }

    /// Adds a warning, unless it is the newest event already: what is tried again and again is
    /// told once.
    pub(super) fn warn_once(&mut self, message: &str) {
        let told = self.events.front().is_some_and(|event| {
            event.kind == EventType::Warning && event.message.as_deref() == Some(message)
        });
        if !told {
            self.add_event(EventType::Warning, message.to_owned());
        }
    }

    /// Adds an event about the guest that is no transition.
    pub(super) fn add_request_event(&mut self, kind: EventType, request: EventRequest) {
        let note = Note {
            source: Source::Guest,
            request: Some(request),
            ..Note::default()
        };
        let (event, _) = note.into_event(self.record.state, kind);
        let change = Change::Event(self.record.id.clone(), Box::new(event.clone()));
        self.commit_soon("store an event", vec![change]);
        self.show(Some(event));
    }

    /// Stores the record as it is, without waiting.
    pub(super) fn store_record_soon(&mut self) {
        let change = Change::Machine(Box::new(self.record.clone()));
        self.commit_soon("store the machine", vec![change]);
    }

    /// Stores the record as it is, and before it what could not be stored earlier.
    pub(super) fn store_unsaved(&mut self) {
        let mut changes = self.unsaved.take();
        changes.push(Change::Machine(Box::new(self.record.clone())));
        self.commit_soon("store what could not be stored before", changes);
    }

    /// The step `name` is reached, and everything so far is in the database.
    pub(super) async fn reach_stored(&self, name: &str) {
        if fail_point::is_armed(name) {
            let arrived = self.host.store.commit("arrive at a step", Vec::new());
            let _ = arrived.await;
            fail_point::reach(name);
        }
    }

    fn commit_soon(&self, what: &'static str, changes: Vec<Change>) {
        let way_back = self.unsaved.way_back();
        self.host.store.commit_soon(what, changes, way_back);
    }
}

impl Note {
    fn into_event(self, state: State, kind: EventType) -> (MachineEvent, Option<Timing>) {
        let source = match self.source {
            Source::User => "user",
            Source::Supervisor => "flyd",
            Source::Guest => "guest",
        };
        let event = MachineEvent {
            id: record::new_ulid(),
            kind: self.kind.unwrap_or(kind),
            status: state.name().to_owned(),
            source: source.to_owned(),
            timestamp: clock::realtime_ms(),
            request: self.request,
            duration_ms: self.timing.as_ref().map(|timing| timing.total_ms),
            phases: self
                .timing
                .as_ref()
                .map(|timing| timing.phases.clone())
                .unwrap_or_default(),
            start: self.start,
            message: self.message,
        };
        (event, self.timing)
    }
}

fn kind_of(event: Event) -> EventType {
    match event {
        Event::StartBegun | Event::Ready | Event::StartFailed | Event::StartRolledBack => {
            EventType::Start
        }
        Event::SuspendBegun | Event::SuspendDone | Event::SuspendAbandoned => EventType::Suspend,
        Event::StopBegun | Event::Halted | Event::Broken => EventType::Stop,
        Event::RestartBegun => EventType::Restart,
        Event::UpdateBegun => EventType::Update,
        Event::DestroyBegun | Event::DestroyDone => EventType::Destroy,
    }
}
