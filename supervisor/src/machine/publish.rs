//! How a machine's state is changed, stored and shown: the driver's only way to do so.
//!
//! Every step goes through [`crate::model::state::apply`], becomes an event, is stored and then
//! published with the whole machine.

use std::io;
use std::sync::Arc;

use machine_api::{CheckStatus, EventRequest, EventType, MachineEvent};
use tokio::time::Instant;

use crate::machine::disk_claims::holds_disks;
use crate::machine::driver::Driver;
use crate::machine::error::MachineError;
use crate::machine_folder::MachineFile;
use crate::model::event::{self, EventDetails, Source};
use crate::model::record::MachineRecord;
use crate::model::state::{Event, State, apply};
use crate::model::view;
use crate::store::Change;
use crate::{clock, fail_point};

/// Most events in a machine's view.
const SHOWN_EVENTS: usize = 30;

impl Driver {
    /// Shows the result of a check; a changed one becomes an event.
    pub(super) fn publish_check_result(&mut self, generation: u64, status: CheckStatus) {
        // A check that a suspend or a stop interrupted fails late, and says nothing about the guest that
        // runs now.
        let runs = self.record.state == State::Started && self.session.is_some();
        if !runs || generation != self.record.generation {
            return;
        }
        let known = self
            .checks
            .iter_mut()
            .find(|known| known.name == status.name);
        let is_first = known.is_none();
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
        match (changed, is_first) {
            (true, true) => self.add_event(EventType::Check, message),
            (true, false) => self.add_check_event(message),
            (false, _) => self.show(None),
        }
    }

    /// Adds a result that is not as before as an event. A guest decides how its checks end: one whose results
    /// change all the time gets few events, and the next one says how many changes are not listed.
    fn add_check_event(&mut self, message: String) {
        let message = match self.check_events.next(Instant::now()) {
            None => return self.show(None),
            Some(0) => message,
            Some(changes) => format!("{message} ({changes} changes before it are not listed)"),
        };
        self.add_event(EventType::Check, message);
    }

    /// Moves to the state that `event` leads to: stored first, then shown.
    pub(super) async fn transition(
        &mut self,
        event: Event,
        details: EventDetails,
        edit: impl FnOnce(&mut MachineRecord),
    ) -> Result<(), MachineError> {
        let (next, shown, mut changes) = self.prepare(event, details, edit)?;
        if next.instance_id != self.record.instance_id {
            changes.push(Change::Version(Box::new(next.clone())));
        }
        // What could not be stored before happened before: a crash must not leave this step without those that
        // led to it.
        let late = self.unsaved.drain();
        changes.splice(..0, late.iter().cloned());
        let store = &self.context.store;
        if let Err(error) = store.commit("store the machine's new state", changes).await {
            self.unsaved.keep(late);
            return Err(error.into());
        }
        self.take_step(next);
        self.show(Some(shown));
        self.store_machine_file().await;
        Ok(())
    }

    /// Makes the file in the machine's folder say what the record does.
    pub(super) async fn store_machine_file(&mut self) {
        let says_so = |file: &MachineFile| file.describes(&self.record);
        let goes = matches!(self.record.state, State::Destroying | State::Destroyed);
        if goes || self.machine_file.as_ref().is_some_and(says_so) {
            return;
        }
        let file = MachineFile::of(&self.record);
        let (stored, dir) = (file.clone(), self.dir.clone());
        let done = tokio::task::spawn_blocking(move || stored.store(&dir)).await;
        match done.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into())) {
            Ok(()) => self.machine_file = Some(file),
            Err(error) => self.warn_once(&format!(
                "its file cannot be written: {error}; if the database were lost, it would be taken \
                 back as it was before"
            )),
        }
    }

    /// Moves to the state that `event` leads to: shown at once, stored later. For the ends of
    /// transitions, which a new supervisor finds out by itself.
    pub(super) fn transition_then_store(
        &mut self,
        event: Event,
        details: EventDetails,
        edit: impl FnOnce(&mut MachineRecord),
    ) {
        match self.prepare(event, details, edit) {
            Ok((next, shown, changes)) => {
                self.commit_later("store the machine's new state", changes);
                self.take_step(next);
                self.show(Some(shown));
            }
            Err(error) => {
                tracing::error!(machine_id = self.record.id, %error, "a step is impossible");
            }
        }
    }

    fn take_step(&mut self, next: MachineRecord) {
        self.record = next;
        if !holds_disks(self.record.state) {
            self.context.disk_claims.release(&self.record.id);
        }
    }

    fn prepare(
        &self,
        event: Event,
        details: EventDetails,
        edit: impl FnOnce(&mut MachineRecord),
    ) -> Result<(MachineRecord, MachineEvent, Vec<Change>), MachineError> {
        let state = apply(self.record.state, event)
            .map_err(|unexpected| self.failed(unexpected.to_string()))?;
        let mut next = self.record.clone();
        edit(&mut next);
        next.state = state;
        next.updated_at_ms = clock::realtime_ms();
        let timing = details.timing.clone();
        let shown = event::new(kind_of(event), state, details);
        let mut changes = vec![
            Change::Machine(Box::new(next.clone())),
            Change::Event(next.id.clone(), Box::new(shown.clone())),
        ];
        if let Some(timing) = timing {
            changes.push(Change::Timing(next.id.clone(), Box::new(timing)));
        }
        Ok((next, shown, changes))
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

    /// Adds an event of the supervisor's that is no transition.
    pub(super) fn add_event(&mut self, kind: EventType, message: String) {
        let details = EventDetails {
            message: Some(message),
            ..EventDetails::default()
        };
        self.publish_event(event::new(kind, self.record.state, details));
    }

    /// Adds the event of a new version.
    pub(super) fn add_launch(&mut self) {
        self.publish_event(event::launch());
    }

    /// Adds a warning, unless it is the newest event already: a retry that fails for the same reason
    /// is no news.
    pub(super) fn warn_once(&mut self, message: &str) {
        let newest = self.events.front().is_some_and(|event| {
            event.kind == EventType::Warning && event.message.as_deref() == Some(message)
        });
        if !newest {
            self.add_event(EventType::Warning, message.to_owned());
        }
    }

    /// Adds an event about the guest that is no transition.
    pub(super) fn add_guest_event(&mut self, kind: EventType, request: EventRequest) {
        let details = EventDetails {
            source: Source::Guest,
            request: Some(request),
            ..EventDetails::default()
        };
        self.publish_event(event::new(kind, self.record.state, details));
    }

    fn publish_event(&mut self, event: MachineEvent) {
        let change = Change::Event(self.record.id.clone(), Box::new(event.clone()));
        self.commit_later("store an event", vec![change]);
        self.show(Some(event));
    }

    /// Stores the record as it is now, without waiting.
    pub(super) fn store_record_later(&mut self) {
        let change = Change::Machine(Box::new(self.record.clone()));
        self.commit_later("store the machine", vec![change]);
    }

    /// Stores what could not be stored before, and the record as it is now.
    pub(super) fn store_unsaved(&mut self) {
        let mut changes = self.unsaved.drain();
        changes.push(Change::Machine(Box::new(self.record.clone())));
        self.commit_later("store what could not be stored before", changes);
    }

    /// Marks the step `name`, for a test only after everything so far is stored.
    pub(super) async fn reach_when_stored(&self, name: &str) {
        if fail_point::is_armed(name) {
            let arrived = self.context.store.commit("arrive at a step", Vec::new());
            let _ = arrived.await;
            fail_point::reach(name);
        }
    }

    fn commit_later(&mut self, what: &'static str, changes: Vec<Change>) {
        // Those of other machines do not wait behind many of this one.
        if self.unsaved.is_database_behind() {
            self.unsaved.keep(changes);
            return;
        }
        let return_path = self.unsaved.return_path();
        self.context.store.commit_later(what, changes, return_path);
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
