//! Stopping, restarting, updating and destroying, and what to do when a VMM ends by itself.

use std::fs;
use std::io;
use std::time::Duration;

use guest_protocol::{Exit, Request};
use machine_api::{EventRequest, EventType, ExitEvent, MachineConfig, Operation, RestartPolicy};
use tokio::time::{Instant, timeout};
use vmm_control::ExitReason;

use crate::clock;
use crate::fail_point;
use crate::guest::GuestAddress;
use crate::machine::config::StopOrder;
use crate::machine::driver::{Attended, Driver, Effect};
use crate::machine::handle::{Envelope, Order, Update};
use crate::machine::publish::{Note, Source};
use crate::machine::readiness::chain;
use crate::machine::state::{Event, State};
use crate::machine::timing::Trace;
use crate::machine::{MachineError, record};
use crate::store::Change;
use crate::vmm_process::VmmExit;

/// Deadline for guest-init to take the order to power off.
const ORDER_LIMIT: Duration = Duration::from_secs(3);
/// What a guest may take to power off once its main process has ended.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait for the main process's exit, which arrives before the VMM ends.
const MAIN_EXIT_LIMIT: Duration = Duration::from_millis(200);
/// Waits of the restart policy.
const RESTART_FIRST: Duration = Duration::from_millis(500);
const RESTART_MOST: Duration = Duration::from_secs(60);
/// A machine that ran this long begins its count of restarts anew.
const STABLE: Duration = Duration::from_secs(60);

impl Driver {
    /// Stops the machine, or drops its image.
    pub(super) async fn stop(
        &mut self,
        order: StopOrder,
        mut trace: Trace,
        envelope: Option<Envelope>,
    ) -> Option<Envelope> {
        let previous = self.record.state;
        let note = Note {
            source: Source::User,
            ..Note::default()
        };
        let begun = self
            .transition(Event::StopBegun, note, |record| {
                record.facts.stop_requested = true;
            })
            .await;
        if let Err(error) = begun {
            if let Some(envelope) = envelope {
                let _ = envelope.reply.send(Err(error));
            }
            return None;
        }
        fail_point::reach("stop.stored");
        self.admitted(envelope, previous);
        trace.mark("admission");
        self.carry_out_stop(Some(order), trace).await
    }

    /// From `stopping` to `stopped`.
    pub(crate) async fn carry_out_stop(
        &mut self,
        order: Option<StopOrder>,
        mut trace: Trace,
    ) -> Option<Envelope> {
        if let Some(envelope) = self.end_guest(order, &mut trace).await {
            return Some(envelope);
        }
        fail_point::reach("stop.ended");
        let message = self.drop_image().err().map(|error| error.to_string());
        fail_point::reach("stop.dropped");
        let timing = trace.finish(Operation::Stop, self.record.generation);
        let note = Note {
            timing: Some(timing),
            message,
            ..Note::default()
        };
        self.transition_soon(Event::Halted, note, |record| record.vmm = None);
        self.settle(None);
        None
    }

    /// Ends the guest: asks, waits, kills. A request that can't wait comes back.
    async fn end_guest(&mut self, order: Option<StopOrder>, trace: &mut Trace) -> Option<Envelope> {
        let vmm = self.vmm.clone()?;
        if let Some(order) = order {
            let address = GuestAddress {
                socket: self.dir.vsock_socket(),
                generation: self.record.generation,
            };
            let timeout_ms = u64::try_from(order.timeout.as_millis()).unwrap_or(u64::MAX);
            let asked = Request::PowerOff {
                signal: order.signal,
                timeout_ms,
            };
            let mut work: Effect<'_, bool> = Box::pin(async move {
                match timeout(ORDER_LIMIT, address.order(asked)).await {
                    Ok(Ok(())) => {
                        let limit = order.timeout + POWER_OFF_LIMIT;
                        timeout(limit, vmm.exited()).await.is_ok()
                    }
                    Ok(Err(_)) | Err(_) => false,
                }
            });
            match self.attend(&mut work).await {
                Attended::Done(true) => {}
                Attended::Done(false) => {
                    self.log
                        .add_note("the guest did not power off by itself; it is killed");
                }
                Attended::Interrupted(envelope) => {
                    self.kill_vmm().await;
                    return Some(envelope);
                }
            }
            trace.mark("power_off");
        }
        self.note_main_exit(true).await;
        self.kill_vmm().await;
        trace.mark("vmm_exit");
        None
    }

    /// Adds the exit of the main process as an event, where it was heard of.
    async fn note_main_exit(&mut self, requested: bool) -> Option<Exit> {
        let exit = self.session.as_ref()?.main_exit(MAIN_EXIT_LIMIT).await?;
        let event = exit_event(Some(exit), requested, false);
        let request = EventRequest {
            exit_event: Some(event),
            restart_count: None,
        };
        self.add_request_event(EventType::Exit, request);
        Some(exit)
    }

    /// Removes the image; it must not be resumed any more.
    pub(super) fn drop_image(&mut self) -> Result<(), MachineError> {
        self.record.image_generation = None;
        self.record.facts.image_unusable = None;
        remove_tree(&self.dir.image()).map_err(|source| MachineError::Files {
            what: "remove the image",
            source,
        })
    }

    /// Stops and starts.
    pub(super) async fn restart(
        &mut self,
        stop: Option<StopOrder>,
        mut trace: Trace,
        envelope: Envelope,
    ) -> Option<Envelope> {
        if !matches!(self.record.state, State::Started | State::Suspended) {
            return self.start(Source::User, trace, Some(envelope)).await;
        }
        let previous = self.record.state;
        let note = Note {
            source: Source::User,
            ..Note::default()
        };
        if let Err(error) = self.transition(Event::RestartBegun, note, |_| {}).await {
            let _ = envelope.reply.send(Err(error));
            return None;
        }
        fail_point::reach("restart.stored");
        self.admitted(Some(envelope), previous);
        self.carry_out_restart(stop, &mut trace).await
    }

    /// From `restarting` to `started`.
    pub(crate) async fn carry_out_restart(
        &mut self,
        stop: Option<StopOrder>,
        trace: &mut Trace,
    ) -> Option<Envelope> {
        if let Some(envelope) = self.end_guest(stop, trace).await {
            return Some(envelope);
        }
        if let Err(error) = self.drop_image() {
            self.add_event(EventType::Warning, chain(&error));
        }
        fail_point::reach("restart.ended");
        Box::pin(self.start(Source::Supervisor, Trace::begin(), None)).await
    }

    /// Takes a new configuration.
    pub(super) async fn update(
        &mut self,
        mut trace: Trace,
        envelope: Envelope,
    ) -> Option<Envelope> {
        let Envelope {
            order: Order::Update(update),
            ..
        } = &envelope
        else {
            return None;
        };
        let (checked, skip_launch) = (self.check_update(update), update.skip_launch);
        let (config, name) = (update.config.clone(), update.name.clone());
        let image = match checked {
            Ok(image) => image,
            Err(error) => {
                let _ = envelope.reply.send(Err(error));
                return None;
            }
        };
        let previous = self.record.state;
        let note = Note {
            source: Source::User,
            ..Note::default()
        };
        let begun = self.transition(Event::UpdateBegun, note, |record| {
            record.config = config;
            record.image_ref = image;
            record.name = name.unwrap_or_else(|| record.name.clone());
            record.instance_id = record::new_ulid();
            record.facts.skip_launch = skip_launch;
            record.facts.image_unusable = Some("configuration changed".to_owned());
        });
        if let Err(error) = begun.await {
            let _ = envelope.reply.send(Err(error));
            return None;
        }
        let version = Change::Version(Box::new(self.record.clone()));
        self.host
            .store
            .commit_soon("store the machine's version", vec![version]);
        fail_point::reach("update.stored");
        self.admitted(Some(envelope), previous);
        self.carry_out_update(&mut trace).await
    }

    /// From `updating` to `stopped` or `started`.
    pub(crate) async fn carry_out_update(&mut self, trace: &mut Trace) -> Option<Envelope> {
        let stop =
            crate::machine::config::stop_order(None, None, self.record.config.stop_config.as_ref());
        if let Some(envelope) = self.end_guest(stop.ok(), trace).await {
            return Some(envelope);
        }
        if let Err(error) = self.drop_image() {
            self.add_event(EventType::Warning, chain(&error));
        }
        fail_point::reach("update.ended");
        if !self.record.facts.skip_launch {
            return Box::pin(self.start(Source::User, Trace::begin(), None)).await;
        }
        let note = Note {
            kind: Some(EventType::Update),
            ..Note::default()
        };
        self.transition_soon(Event::Halted, note, |record| record.vmm = None);
        self.settle(None);
        None
    }

    fn check_update(&self, update: &Update) -> Result<machine_api::ImageRef, MachineError> {
        if let Some(expected) = &update.current_version
            && *expected != self.record.instance_id
        {
            return Err(MachineError::OtherVersion {
                id: self.record.id.clone(),
                found: self.record.instance_id.clone(),
                expected: expected.clone(),
            });
        }
        Ok(self.host.images.find(&update.config.image)?.reference)
    }

    /// Removes the machine; afterwards only its row is left, for a while.
    pub(super) async fn destroy(&mut self, envelope: Option<Envelope>) {
        let previous = self.record.state;
        if previous != State::Destroying {
            let note = Note {
                source: Source::User,
                ..Note::default()
            };
            if let Err(error) = self.transition(Event::DestroyBegun, note, |_| {}).await {
                if let Some(envelope) = envelope {
                    let _ = envelope.reply.send(Err(error));
                }
                return;
            }
        }
        fail_point::reach("destroy.stored");
        self.kill_vmm().await;
        let removed = remove_tree(self.dir.root());
        fail_point::reach("destroy.removed");
        let message = removed
            .err()
            .map(|error| format!("its files could not be removed: {error}"));
        let note = Note {
            message,
            ..Note::default()
        };
        let gone = self.transition(Event::DestroyDone, note, |record| {
            record.vmm = None;
            record.image_generation = None;
        });
        if let Err(error) = gone.await {
            tracing::error!(machine_id = self.record.id, %error, "cannot finish a destroy");
        }
        // Answered at the end in either case: nothing that a client could wait for is left.
        self.admitted(envelope, previous);
        self.settle(None);
    }

    /// The VMM ended without a transition under way that expects it.
    pub(super) async fn note_vmm_end(&mut self, exit: VmmExit) -> Option<Envelope> {
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
        let wait = restart_wait(&self.record.config, clean, restarts);
        let requested = self.record.facts.stop_requested;
        let event = exit_event(main, requested, wait.is_some());
        let note = Note {
            kind: Some(EventType::Exit),
            source: Source::Guest,
            message: Some(exit.in_words()),
            request: Some(EventRequest {
                exit_event: Some(event),
                restart_count: Some(restarts),
            }),
            ..Note::default()
        };
        self.log.add_note(&exit.in_words());
        self.transition_soon(Event::Halted, note, |record| {
            record.vmm = None;
            record.facts.restarts = if wait.is_some() {
                restarts + 1
            } else {
                restarts
            };
        });
        self.settle(Some(&exit.in_words()));
        match wait {
            Some(wait) => self.restart_at = Some(Instant::now() + wait),
            None if self.record.config.auto_destroy => self.destroy(None).await,
            None if !clean && gave_up(&self.record.config, restarts) => {
                let message = format!("gave up after {restarts} restarts");
                let note = Note {
                    message: Some(message),
                    ..Note::default()
                };
                self.transition_soon(Event::GaveUp, note, |_| {});
            }
            None => {}
        }
        None
    }
}

/// When the restart policy starts a machine again, if it does.
fn restart_wait(config: &MachineConfig, clean: bool, restarts: u32) -> Option<Duration> {
    let restart = config.restart.clone().unwrap_or_default();
    let wanted = match restart.policy {
        RestartPolicy::No => false,
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => {
            !clean && restart.max_retries.is_none_or(|most| restarts < most)
        }
    };
    wanted.then(|| {
        RESTART_FIRST
            .saturating_mul(1 << restarts.min(16))
            .min(RESTART_MOST)
    })
}

fn gave_up(config: &MachineConfig, restarts: u32) -> bool {
    let restart = config.restart.clone().unwrap_or_default();
    restart.policy == RestartPolicy::OnFailure
        && restart.max_retries.is_some_and(|most| restarts >= most)
}

fn exit_event(exit: Option<Exit>, requested_stop: bool, restarting: bool) -> ExitEvent {
    ExitEvent {
        exit_code: exit.and_then(|exit| exit.code).unwrap_or(-1),
        signal: exit.map_or(-1, |exit| exit.signal.unwrap_or(0)),
        oom_killed: exit.is_some_and(|exit| exit.oom_killed),
        requested_stop,
        restarting,
        exited_at: clock::realtime_ms(),
    }
}

fn remove_tree(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
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
        assert!(gave_up(&limited, 2));
        let endless = config(RestartPolicy::Always, None);
        let waits: Vec<_> = (0..9)
            .map(|n| restart_wait(&endless, false, n).unwrap())
            .collect();
        assert!(waits.is_sorted());
        assert_eq!(waits[8], RESTART_MOST);
    }
}
