//! What becomes of a machine whose VMM ended by itself: the restart policy, or its removal.
//!
//! What is decided is stored with the end itself, so that a crash in between changes nothing.

use std::time::Duration;

use guest_protocol::Exit;
use machine_api::{EventRequest, EventType, ExitEvent, MachineConfig, RestartPolicy};
use tokio::time::Instant;
use vmm_control::ExitReason;

use crate::machine::MachineError;
use crate::machine::driver::Driver;
use crate::machine::handle::Envelope;
use crate::machine::publish::{Note, Source};
use crate::machine::state::{Event, State};
use crate::machine::stop::forgo_restart;
use crate::store::Change;
use crate::vmm_process::VmmExit;
use crate::{clock, fail_point};

/// How long to wait for the main process's exit, which arrives before the VMM ends.
const MAIN_EXIT_LIMIT: Duration = Duration::from_millis(200);
/// Waits of the restart policy.
const RESTART_FIRST: Duration = Duration::from_millis(500);
const RESTART_MOST: Duration = Duration::from_secs(60);
/// Restarts in a row with `on-failure`, unless the configuration says otherwise: as many as the
/// documentation of Fly Machines names.
const MOST_RETRIES: u32 = 10;
/// A machine that ran this long begins its count of restarts anew.
const STABLE: Duration = Duration::from_secs(60);

impl Driver {
    /// The VMM ended without a transition under way that expects it.
    pub(super) async fn note_vmm_end(&mut self, exit: VmmExit) -> Option<Envelope> {
        if self.is_in_image(&exit) {
            // A suspend that had been given up was done all the same.
            self.kill_vmm().await;
            self.note_suspended();
            return None;
        }
        let damaged = exit.reason() == Some(ExitReason::ImageDamaged);
        let main = match &self.session {
            Some(session) => session.main_exit(MAIN_EXIT_LIMIT).await,
            None => None,
        };
        self.kill_vmm().await;
        let ran = self.started_at.map(|started| started.elapsed());
        let clean = match main {
            Some(main) => main.code == Some(0),
            None => exit.reason() == Some(ExitReason::GuestPowerOff),
        };
        let restarts = if ran.is_some_and(|ran| ran > STABLE) {
            0
        } else {
            self.record.facts.restarts
        };
        let config = &self.record.config;
        // Damage is not the guest's doing: it is looked at by somebody before anything runs again.
        let wait = restart_wait(config, clean, restarts).filter(|_| !damaged);
        let mut message = exit.in_words();
        if is_given_up(config, clean, restarts) && !damaged {
            message = format!("{message}; given up after {restarts} restarts");
        }
        let requested = self.record.facts.stop_requested;
        let event = exit_event(main, requested, wait.is_some());
        let note = Note {
            kind: Some(EventType::Exit),
            source: Source::Guest,
            message: Some(message.clone()),
            request: Some(EventRequest {
                exit_event: Some(event),
                restart_count: Some(restarts),
            }),
            ..Note::default()
        };
        self.log.add_note(&message);
        let end = if damaged {
            Event::Broken
        } else {
            Event::Halted
        };
        self.transition_soon(end, note, |record| {
            record.vmm = None;
            let facts = &mut record.facts;
            facts.restart_due = wait.is_some();
            facts.restarts = restarts + u32::from(wait.is_some());
            facts.destroy_due = wait.is_none() && record.config.auto_destroy && !damaged;
        });
        self.settle(Some(&message));
        self.restart_at = wait.map(|wait| Instant::now() + wait);
        self.reach_stored("end.halted").await;
        self.destroy_if_due("end.destroy_due").await;
        None
    }

    /// Whether a VMM that ended so left its guest in a whole image.
    pub(super) fn is_in_image(&self, exit: &VmmExit) -> bool {
        exit.reason() == Some(ExitReason::Suspended) && self.dir.image_manifest().exists()
    }

    /// Adds the exit of the main process as an event, where it was heard of.
    pub(super) async fn note_main_exit(&mut self, requested: bool) -> Option<Exit> {
        let exit = self.session.as_ref()?.main_exit(MAIN_EXIT_LIMIT).await?;
        let event = exit_event(Some(exit), requested, false);
        let request = EventRequest {
            exit_event: Some(event),
            restart_count: None,
        };
        self.add_request_event(EventType::Exit, request);
        Some(exit)
    }

    /// Removes a machine that has ended and should not outlive that. What fails is carried on.
    pub(crate) async fn destroy_if_due(&mut self, step: &str) {
        if self.is_destroy_due() {
            self.reach_stored(step).await;
            self.destroy(None).await;
        }
    }

    pub(super) fn is_destroy_due(&self) -> bool {
        self.record.facts.destroy_due && self.record.state == State::Stopped
    }

    /// A machine that waits for its restart is to be stopped: stored before that is answered.
    pub(super) async fn stop_restarting(&mut self) -> Result<(), MachineError> {
        let mut changed = self.record.clone();
        forgo_restart(&mut changed);
        changed.facts.destroy_due = changed.config.auto_destroy;
        let change = Change::Machine(Box::new(changed.clone()));
        let stored = self.host.store.commit("store the stop", vec![change]);
        stored.await?;
        self.record = changed;
        self.restart_at = None;
        fail_point::reach("stop.forgone");
        Ok(())
    }

    /// A restart by policy that did not lead to a start, such as for want of processes, is not
    /// the last one.
    pub(super) fn plan_another_restart(&mut self) {
        let rests = matches!(self.record.state, State::Stopped | State::Failed);
        let facts = &mut self.record.facts;
        if !rests || !facts.restart_due || self.restart_at.is_some() {
            return;
        }
        let restarts = facts.restarts;
        let wait = restart_wait(&self.record.config, false, restarts);
        facts.restart_due = wait.is_some();
        facts.restarts += u32::from(wait.is_some());
        self.restart_at = wait.map(|wait| Instant::now() + wait);
        self.store_record_soon();
        if wait.is_none() {
            let message = format!("given up after {restarts} restarts");
            self.add_event(EventType::Warning, message);
        }
    }

    /// Goes on waiting for a restart that an earlier supervisor had planned.
    pub(crate) fn resume_restart(&mut self) {
        let facts = &self.record.facts;
        if facts.restart_due && matches!(self.record.state, State::Stopped | State::Failed) {
            let restarts = facts.restarts.saturating_sub(1);
            let wait = restart_wait(&self.record.config, false, restarts);
            self.restart_at = wait.map(|wait| Instant::now() + wait);
        }
    }
}

/// When the restart policy starts a machine again, if it does.
fn restart_wait(config: &MachineConfig, clean: bool, restarts: u32) -> Option<Duration> {
    let restart = config.restart.clone().unwrap_or_default();
    let wanted = match restart.policy {
        RestartPolicy::No => false,
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => {
            !clean && restarts < restart.max_retries.unwrap_or(MOST_RETRIES)
        }
    };
    wanted.then(|| {
        RESTART_FIRST
            .saturating_mul(1 << restarts.min(16))
            .min(RESTART_MOST)
    })
}

/// Whether only the number of its restarts keeps it from another one.
fn is_given_up(config: &MachineConfig, clean: bool, restarts: u32) -> bool {
    let policy = config.restart.as_ref().map(|restart| restart.policy);
    let retries = policy.unwrap_or_default() == RestartPolicy::OnFailure && !clean;
    retries && restart_wait(config, clean, restarts).is_none()
}

fn exit_event(exit: Option<Exit>, requested_stop: bool, restarting: bool) -> ExitEvent {
    // What a VMM ends with says nothing to users: both pairs are the main process's.
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

#[cfg(test)]
mod tests {
    use machine_api::Restart;

    use super::*;

    fn config(policy: RestartPolicy, max_retries: Option<u32>) -> MachineConfig {
        let restart = Some(Restart {
            policy,
            max_retries,
        });
        MachineConfig {
            restart,
            ..MachineConfig::default()
        }
    }

    #[test]
    fn policies_restart_what_they_should() {
        use RestartPolicy::{Always, No, OnFailure};
        let restarts = |policy, clean| restart_wait(&config(policy, None), clean, 0).is_some();
        assert_eq!([restarts(No, false), restarts(No, true)], [false, false]);
        assert_eq!(
            [restarts(Always, false), restarts(Always, true)],
            [true, true]
        );
        assert_eq!(
            [restarts(OnFailure, false), restarts(OnFailure, true)],
            [true, false]
        );
    }

    #[test]
    fn retries_end_and_waits_grow() {
        let limited = config(RestartPolicy::OnFailure, Some(2));
        assert!(restart_wait(&limited, false, 1).is_some());
        assert!(restart_wait(&limited, false, 2).is_none());
        assert!(is_given_up(&limited, false, 2) && !is_given_up(&limited, true, 2));
        let usual = config(RestartPolicy::OnFailure, None);
        assert!(restart_wait(&usual, false, 9).is_some());
        assert!(restart_wait(&usual, false, 10).is_none());
        let endless = config(RestartPolicy::Always, None);
        let waits: Vec<_> = (0..9)
            .map(|n| restart_wait(&endless, false, n).unwrap())
            .collect();
        assert!(waits.is_sorted());
        assert_eq!(waits[8], RESTART_MOST);
    }
}
