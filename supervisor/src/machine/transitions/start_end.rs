//! How a start ends: the machine is started, or the start has failed, or the guest has ended already.

use machine_api::{Attempt, EventType, Operation, StartKind, Timing};
use tokio::time::Instant;

use crate::machine::bring_up::ReadyGuest;
use crate::machine::driver::Driver;
use crate::machine::handle::LiveGuest;
use crate::machine::main_process::has_main_process;
use crate::machine::request::Request;
use crate::machine::session::GuestSession;
use crate::model::event::EventDetails;
use crate::model::record::MachineRecord;
use crate::model::restart_policy::{is_given_up, restart_wait};
use crate::model::state::Event;
use crate::model::timing::Trace;
use crate::model::view;
use crate::vmm_process::VmmExit;
use crate::{clock, fail_point};

impl Driver {
    /// The guest is ready: the machine is started.
    pub(super) fn finish_start(
        &mut self,
        guest: ReadyGuest,
        resumed: bool,
        trace: &Trace,
        attempts: Vec<Attempt>,
    ) {
        fail_point::reach("start.ready");
        let start = self.start_kind(resumed);
        let mut timing = self.timing(resumed, trace, &attempts);
        timing.start = Some(start.clone());
        timing.guest = Some(view::guest(&guest.status));
        let older = guest.status.open_vsocks.older_generations;
        self.record.facts.guest_protocol = Some(guest.status.protocol);
        self.begin_session(guest);
        let details = EventDetails {
            timing: Some(timing),
            start: Some(start.clone()),
            ..EventDetails::default()
        };
        self.transition_then_store(Event::Ready, details, |record| {
            note_started(record, start);
            record.facts.readiness = attempts;
            record.facts.record_leaks(older, record.generation);
        });
        fail_point::reach("start.shown");
        if older > 0 {
            let message = self.record.facts.warnings.join("; ");
            self.add_event(EventType::Warning, message);
        }
        self.answer_waiters(None);
    }

    /// The guest has powered itself off before it was seen to be ready: it has done what it was started for,
    /// and that must not be done again.
    pub(in crate::machine) async fn record_short_run(
        &mut self,
        exit: VmmExit,
        resumed: bool,
    ) -> Option<Request> {
        let start = self.start_kind(resumed);
        let details = EventDetails {
            start: Some(start.clone()),
            ..EventDetails::default()
        };
        self.transition_then_store(Event::Ready, details, |record| note_started(record, start));
        self.answer_waiters(None);
        Box::pin(self.respond_to_vmm_end(exit)).await
    }

    fn start_kind(&self, resumed: bool) -> StartKind {
        match (resumed, &self.record.facts.cold_reason) {
            (true, _) => StartKind::Resumed,
            (false, Some(reason)) => StartKind::ColdBooted {
                reason: reason.clone(),
            },
            (false, None) => StartKind::Booted,
        }
    }

    /// Begins the long-lived connections and lets others use the guest.
    pub(super) fn begin_session(&mut self, guest: ReadyGuest) {
        let address = self.guest_address();
        let with_output = has_main_process(&self.record.config);
        #[cfg(feature = "leaks")]
        if let Err(error) = crate::machine::leaks::leak_one_of_each(
            &self.record,
            &self.dir,
            &self.log,
            &self.context.store,
            address.clone(),
        ) {
            tracing::error!(%error, "cannot leak");
        }
        let address = address.holding_answers(guest.control.output_gate());
        let session = GuestSession::begin(&address, guest.monitor, &self.log, with_output);
        let observations = session.observations();
        self.publish_live(Some(LiveGuest {
            address: address.with_permits(self.call_permits.clone()),
            control: guest.control.clone(),
            process: self.vmm.clone(),
            observations,
        }));
        self.control = Some(guest.control);
        self.session = Some(session);
        self.activity.restart_idle_time();
    }

    fn timing(&self, resumed: bool, trace: &Trace, attempts: &[Attempt]) -> Timing {
        let operation = if resumed {
            Operation::Resume
        } else {
            Operation::Start
        };
        let mut timing = trace.finish(operation, self.record.generation);
        timing.readiness = attempts.to_vec();
        timing
    }

    pub(super) fn fail_start(
        &mut self,
        message: String,
        resumed: bool,
        trace: &Trace,
        attempts: Vec<Attempt>,
    ) {
        let mut timing = self.timing(resumed, trace, &attempts);
        timing.error = Some(message.clone());
        self.log
            .add_note(&format!("could not be started: {message}"));
        let intact = resumed && self.dir.may_have_image();
        let event = if intact {
            Event::StartRolledBack
        } else {
            Event::StartFailed
        };
        let restarts = self.record.facts.restarts;
        let config = &self.record.config;
        // A suspended machine keeps what it has until somebody needs it.
        let wait = restart_wait(config, false, restarts).filter(|_| !intact);
        let message = if !intact && is_given_up(config, false, restarts) {
            format!("{message}; given up after {restarts} restarts")
        } else {
            message
        };
        let details = EventDetails {
            timing: Some(timing),
            message: Some(message.clone()),
            ..EventDetails::default()
        };
        self.transition_then_store(event, details, |record| {
            record.vmm = None;
            let facts = &mut record.facts;
            facts.readiness = attempts;
            facts.record_end(None, clock::realtime_ms());
            facts.plan_restart(restarts, wait);
            if !intact {
                record.image_generation = None;
            }
        });
        self.answer_waiters(Some(&message));
        self.restart_at = wait.map(|wait| Instant::now() + wait);
    }
}

/// What a start leaves behind: there is no image any more, nor a reason to do without one.
fn note_started(record: &mut MachineRecord, start: StartKind) {
    record.image_generation = None;
    let facts = &mut record.facts;
    facts.image_unusable = None;
    facts.cold_reason = None;
    facts.restart_due = false;
    facts.started_at_ms = Some(clock::realtime_ms());
    facts.last_start = Some(start);
}
