//! Stopping, restarting, updating and destroying.

use std::fs;
use std::io;
use std::time::Duration;

use guest_protocol::Request;
use machine_api::{EventType, Operation};
use tokio::time::{Instant, sleep, timeout};

use crate::guest::{GuestAddress, GuestError};
use crate::machine::config::StopOrder;
use crate::machine::driver::{Attended, Driver, Effect};
use crate::machine::handle::{Envelope, Order, Update};
use crate::machine::publish::Note;
use crate::machine::readiness::chain;
use crate::machine::state::{Event, State};
use crate::machine::timing::Trace;
use crate::machine::{MachineError, record};
use crate::store::MachineRecord;
use crate::{exhausted, fail_point};

/// Deadline for guest-init to take the order to power off.
const ORDER_LIMIT: Duration = Duration::from_secs(3);
/// Wait before that is tried again for want of descriptors.
const ORDER_PAUSE: Duration = Duration::from_millis(100);
/// What a guest may take to power off once its main process has ended.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(10);

impl Driver {
    /// Stops the machine, or drops its image.
    pub(super) async fn stop(
        &mut self,
        order: StopOrder,
        mut trace: Trace,
        envelope: Option<Envelope>,
    ) -> Option<Envelope> {
        let begun_from = envelope.as_ref().and_then(|envelope| envelope.begun_from);
        let previous = begun_from.unwrap_or(self.record.state);
        let begun = match begun_from {
            Some(_) => Ok(()),
            None => {
                let note = Note::by(envelope.as_ref());
                self.transition(Event::StopBegun, note, forgo_restart).await
            }
        };
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
        let message = self.drop_image().err().map(|error| chain(&error));
        fail_point::reach("stop.dropped");
        let timing = trace.finish(Operation::Stop, self.record.generation);
        let note = Note {
            timing: Some(timing),
            message,
            ..Note::default()
        };
        self.transition_soon(Event::Halted, note, |record| {
            record.vmm = None;
            record.facts.destroy_due = record.config.auto_destroy;
        });
        self.settle(None);
        self.destroy_if_due("stop.halted").await;
        None
    }

    /// Ends the guest: asks, waits, kills. A request that can't wait comes back; where that is a
    /// stop, the guest goes on with its end until it is told of the new limits.
    async fn end_guest(&mut self, order: Option<StopOrder>, trace: &mut Trace) -> Option<Envelope> {
        let vmm = self.vmm.clone()?;
        // One that has ended meanwhile, such as by a suspend that was quicker, has nobody to ask.
        let runs = timeout(Duration::ZERO, vmm.exited()).await.is_err();
        if let Some(order) = order.filter(|_| runs) {
            let address = GuestAddress {
                socket: self.dir.vsock_socket(),
                generation: self.record.generation,
            };
            let timeout_ms = u64::try_from(order.timeout.as_millis()).unwrap_or(u64::MAX);
            let asked = Request::PowerOff {
                signal: order.signal,
                timeout_ms,
            };
            let mut work: Effect<'_, Result<(), String>> = Box::pin(async move {
                ask_to_power_off(&address, asked, order.timeout).await?;
                let limit = order.timeout + POWER_OFF_LIMIT;
                let ended = timeout(limit, vmm.exited()).await;
                ended
                    .map(drop)
                    .map_err(|_| format!("it runs on after {} s", limit.as_secs()))
            });
            match self.attend(&mut work).await {
                Attended::Done(Ok(())) => {}
                Attended::Done(Err(why)) => {
                    let note =
                        format!("the guest did not power off by itself ({why}); it is killed");
                    self.log.add_note(&note);
                }
                Attended::Interrupted(envelope) => {
                    if matches!(envelope.order, Order::Destroy { .. }) {
                        self.kill_vmm().await;
                    }
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

    /// Removes the image; it must not be resumed any more.
    pub(super) fn drop_image(&mut self) -> Result<(), MachineError> {
        self.record.image_generation = None;
        self.record.facts.image_unusable = None;
        self.record.facts.cold_reason = None;
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
            return self.start(trace, Some(envelope)).await;
        }
        let previous = self.record.state;
        let note = Note::by(Some(&envelope));
        let begun = self.transition(Event::RestartBegun, note, |record| {
            record.facts.restarts = 0;
        });
        if let Err(error) = begun.await {
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
        Box::pin(self.start(Trace::begin(), None)).await
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
        let note = Note::by(Some(&envelope));
        let begun = self.transition(Event::UpdateBegun, note, |record| {
            record.config = config;
            record.image_ref = image;
            record.name = name.unwrap_or_else(|| record.name.clone());
            record.instance_id = record::new_ulid();
            record.facts.skip_launch = skip_launch;
            record.facts.restarts = 0;
            record.facts.restart_due = false;
            record.facts.image_unusable = Some("configuration changed".to_owned());
        });
        if let Err(error) = begun.await {
            let _ = envelope.reply.send(Err(error));
            return None;
        }
        self.add_launch();
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
            return Box::pin(self.start(Trace::begin(), None)).await;
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
        let begun_from = envelope.as_ref().and_then(|envelope| envelope.begun_from);
        let previous = begun_from.unwrap_or(self.record.state);
        if self.record.state != State::Destroying {
            let note = Note::by(envelope.as_ref());
            if let Err(error) = self.transition(Event::DestroyBegun, note, |_| {}).await {
                if let Some(envelope) = envelope {
                    let _ = envelope.reply.send(Err(error));
                }
                return;
            }
        }
        fail_point::reach("destroy.stored");
        // Answered when nothing is left, or when that has to be tried again.
        self.admitted(envelope, previous);
        self.kill_vmm().await;
        self.log.close();
        let removed = remove_tree(self.dir.root()).map_err(|source| MachineError::Files {
            what: "remove the machine's files",
            source,
        });
        fail_point::reach("destroy.removed");
        let gone = match removed {
            Ok(()) => {
                self.transition(Event::DestroyDone, Note::default(), |record| {
                    record.vmm = None;
                    record.image_generation = None;
                })
                .await
            }
            Err(error) => Err(error),
        };
        match gone {
            Ok(()) => self.settle(None),
            Err(error) => {
                let message = format!("{}; it is tried again", chain(&error));
                tracing::error!(
                    machine_id = self.record.id,
                    error = message,
                    "cannot finish a destroy"
                );
                self.warn_once(&message);
                self.settle(Some(&message));
            }
        }
    }
}

/// Somebody wants the machine to rest: the restart policy has no say any more.
pub(super) fn forgo_restart(record: &mut MachineRecord) {
    record.facts.stop_requested = true;
    record.facts.restart_due = false;
}

/// Orders the guest to power off. While the supervisor itself has no descriptor for that, it is
/// tried again, as long as the main process would have had for its end.
async fn ask_to_power_off(
    address: &GuestAddress,
    order: Request,
    patience: Duration,
) -> Result<(), String> {
    let deadline = Instant::now() + patience;
    loop {
        match timeout(ORDER_LIMIT, address.order(order.clone())).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(GuestError::Dial(error)))
                if exhausted::hint(&error).is_some() && Instant::now() < deadline =>
            {
                sleep(ORDER_PAUSE).await;
            }
            Ok(Err(error)) => return Err(chain(&error)),
            Err(_) => return Err(format!("no answer within {} s", ORDER_LIMIT.as_secs())),
        }
    }
}

fn remove_tree(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
