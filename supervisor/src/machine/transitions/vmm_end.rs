//! When a VMM ends by itself: the machine has stopped, is restarted by its policy, or is removed.
//!
//! What follows is stored together with the end, so that a crash in between changes nothing.

use std::time::Duration;

use guest_protocol::Exit;
use machine_api::{EventRequest, EventType, ExitEvent};
use tokio::time::Instant;
use vmm_control::ExitReason;

use crate::machine::driver::Driver;
use crate::machine::error::MachineError;
use crate::machine::found_vmm::left_image;
use crate::machine::request::Request;
use crate::model::event::{EventDetails, Source};
use crate::model::recovery::LeftImage;
use crate::model::restart_policy::{is_given_up, restart_wait, restarts_in_a_row};
use crate::model::state::{Event, State};
use crate::store::Change;
use crate::vmm_process::VmmExit;
use crate::{clock, fail_point};

/// How long to wait for the exit of the main process, which is reported before the VMM ends.
const MAIN_EXIT_LIMIT: Duration = Duration::from_millis(200);

impl Driver {
    /// The VMM ended, and no transition under way expects that.
    pub(in crate::machine) async fn respond_to_vmm_end(
        &mut self,
        exit: VmmExit,
    ) -> Option<Request> {
        match self.left_image(&exit) {
            LeftImage::None => {}
            LeftImage::Own => {
                // A suspend that had been given up was completed all the same.
                self.kill_vmm().await;
                self.record_unseen_suspend();
                return None;
            }
            LeftImage::Earlier { generation } => {
                let why = exit.in_words();
                self.kill_vmm().await;
                self.return_to_image(generation, &why);
                self.add_event(EventType::Warning, why.clone());
                self.answer_waiters(Some(&why));
                return None;
            }
        }
        let damaged = exit.reason() == Some(ExitReason::ImageDamaged);
        let main = match &self.session {
            Some(session) => session.main_exit(MAIN_EXIT_LIMIT).await,
            None => None,
        };
        let now_ms = clock::realtime_ms();
        let ran = self.record.facts.ran_for(now_ms);
        self.kill_vmm().await;
        let clean = match main {
            Some(main) => main.code == Some(0),
            None => exit.reason() == Some(ExitReason::GuestPowerOff),
        };
        let restarts = restarts_in_a_row(self.record.facts.restarts, ran);
        let config = &self.record.config;
        // Damage is not the guest's doing: somebody has to look at it before anything runs again.
        let wait = restart_wait(config, clean, restarts).filter(|_| !damaged);
        let mut message = exit.in_words();
        if is_given_up(config, clean, restarts) && !damaged {
            message = format!("{message}; given up after {restarts} restarts");
        }
        let requested = self.record.facts.stop_requested;
        let details = EventDetails {
            kind: Some(EventType::Exit),
            source: Source::Guest,
            message: Some(message.clone()),
            request: Some(EventRequest {
                exit_event: Some(exit_event(main, requested, wait.is_some())),
                restart_count: Some(restarts),
            }),
            ..EventDetails::default()
        };
        self.log.add_note(&message);
        let end = if damaged {
            Event::Broken
        } else {
            Event::Halted
        };
        self.transition_then_store(end, details, |record| {
            record.vmm = None;
            let facts = &mut record.facts;
            facts.record_end(ran, now_ms);
            facts.broken = damaged;
            facts.plan_restart(restarts, wait);
            facts.destroy_due = wait.is_none() && record.config.auto_destroy && !damaged;
        });
        self.answer_waiters(Some(&message));
        self.restart_at = wait.map(|wait| Instant::now() + wait);
        self.reach_when_stored("end.halted").await;
        self.destroy_if_due("end.destroy_due").await;
        None
    }

    /// Which image a VMM that ended with `exit` has left.
    pub(super) fn left_image(&self, exit: &VmmExit) -> LeftImage {
        let reason = exit.reason();
        let left = left_image(&self.record, &self.dir, reason);
        left.unwrap_or_else(|error| {
            tracing::warn!(machine_id = self.record.id, %error, "cannot look at the image");
            // A resume will look again.
            match reason {
                Some(ExitReason::Suspended) => LeftImage::Own,
                _ => LeftImage::None,
            }
        })
    }

    /// Adds the exit of the main process as an event, if it is reported.
    pub(super) async fn add_main_exit(&mut self, requested: bool) -> Option<Exit> {
        let exit = self.session.as_ref()?.main_exit(MAIN_EXIT_LIMIT).await?;
        let request = EventRequest {
            exit_event: Some(exit_event(Some(exit), requested, false)),
            restart_count: None,
        };
        self.add_guest_event(EventType::Exit, request);
        Some(exit)
    }

    /// A machine that waits for its restart is told to stop: stored before that is answered.
    pub(in crate::machine) async fn stop_instead_of_restart(&mut self) -> Result<(), MachineError> {
        let mut changed = self.record.clone();
        changed.cancel_restart();
        changed.facts.destroy_due = changed.config.auto_destroy;
        let change = Change::Machine(Box::new(changed.clone()));
        let stored = self.context.store.commit("store the stop", vec![change]);
        stored.await?;
        self.record = changed;
        self.restart_at = None;
        fail_point::reach("stop.forgone");
        Ok(())
    }

    /// A restart by policy that did not lead to a start, for instance when out of processes, is
    /// followed by another one.
    pub(in crate::machine) fn plan_another_restart(&mut self) {
        let ended = matches!(self.record.state, State::Stopped | State::Failed);
        let facts = &mut self.record.facts;
        if !ended || !facts.restart_due || self.restart_at.is_some() {
            return;
        }
        let restarts = facts.restarts;
        let wait = restart_wait(&self.record.config, false, restarts);
        facts.plan_restart(restarts, wait);
        self.restart_at = wait.map(|wait| Instant::now() + wait);
        self.store_record_later();
        if wait.is_none() {
            let message = format!("given up after {restarts} restarts");
            self.add_event(EventType::Warning, message);
        }
    }

    /// Goes on waiting for a restart that an earlier supervisor had planned.
    pub(super) fn continue_restart(&mut self) {
        let facts = &self.record.facts;
        if facts.restart_due && matches!(self.record.state, State::Stopped | State::Failed) {
            let restarts = facts.restarts.saturating_sub(1);
            let wait = restart_wait(&self.record.config, false, restarts);
            self.restart_at = wait.map(|wait| Instant::now() + wait);
        }
    }
}

/// The exit of a main process as the Fly Machines API shows it.
fn exit_event(exit: Option<Exit>, requested_stop: bool, restarting: bool) -> ExitEvent {
    // Both pairs are the main process's: the VMM's own exit code says nothing to users.
    let exit_code = exit.and_then(|exit| exit.code).unwrap_or(-1);
    let signal = exit.map_or(-1, |exit| exit.signal.unwrap_or(0));
    ExitEvent {
        exit_code,
        signal,
        guest_exit_code: exit_code,
        guest_signal: signal,
        oom_killed: exit.is_some_and(|exit| exit.oom_killed),
        requested_stop,
        restarting,
        exited_at: clock::rfc3339_ms(clock::realtime_ms()),
    }
}
