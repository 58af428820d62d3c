//! Taking over machines that an earlier supervisor left in whatever state.

use std::time::Duration;

use machine_api::{EventType, Operation};

use crate::machine::admission::RefusalReason;
use crate::machine::bring_up::{BringUpError, holding};
use crate::machine::config::{StopOrder, stop_order};
use crate::machine::driver::{Attended, Driver, Effect};
use crate::machine::handle::Envelope;
use crate::machine::publish::Note;
use crate::machine::readiness::chain;
use crate::machine::state::{Event, State};
use crate::machine::timing::Trace;
use crate::machine::{MachineError, view};
use crate::vmm_process::{Control, VmmExit, VmmProcess};
use crate::{clock, exhausted, fail_point};

/// Deadline for a VMM to greet a new supervisor.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

impl Driver {
    /// Where the machine is.
    pub(crate) fn state(&self) -> State {
        self.record.state
    }

    /// Takes a living VMM.
    pub(crate) fn set_vmm(&mut self, vmm: Option<VmmProcess>) {
        self.record.vmm = vmm.as_ref().map(|vmm| vmm.identity().clone());
        self.vmm = vmm;
    }

    /// Kills a VMM that should not be there.
    pub(crate) async fn kill_stray_vmm(&mut self) {
        self.add_event(
            EventType::Warning,
            "a VMM that should be gone was killed".to_owned(),
        );
        self.kill_vmm().await;
        self.record.vmm = None;
        self.store_record_soon();
    }

    /// The stop that the configuration wants.
    pub(crate) fn default_stop(&self) -> Option<StopOrder> {
        stop_order(None, None, self.record.config.stop_config.as_ref()).ok()
    }

    /// Connects to a running guest and checks that it is ready.
    pub(crate) async fn adopt(&mut self) -> Option<Envelope> {
        let vmm = self.vmm.clone()?;
        let mut trace = Trace::begin();
        let mut attempts = Vec::new();
        let starting = self.record.state == State::Starting;
        let resumed = self.record.image_generation.is_some() || !starting;
        let bring_up = self.bring_up(vmm, clock::monotonic_ns(), resumed);
        let adoptions = self.host.adoptions.clone();
        let mut work: Effect<'_, _> = Box::pin(async {
            let permit = adoptions.acquire_owned().await;
            holding(permit.ok(), bring_up.run(&mut trace, &mut attempts)).await
        });
        // A request that needs the guest waits until the guest is ours.
        let mut held = None;
        let result = loop {
            match self.attend(&mut work).await {
                Attended::Done(result) => break result,
                // A stop or a destroy ends the VMM by itself.
                Attended::Interrupted(envelope) if envelope.begun_from.is_some() => {
                    self.refuse_held(held);
                    return Some(envelope);
                }
                Attended::Interrupted(envelope) => {
                    let before = held.replace(envelope);
                    self.refuse_held(before);
                }
            }
        };
        drop(work);
        let next = match result {
            Ok(up) if starting => {
                self.finish_start(up, resumed, &trace, attempts);
                None
            }
            Ok(up) => {
                fail_point::reach("adopt.ready");
                self.enter_session(up);
                self.store_record_soon();
                self.add_event(EventType::Adopt, "a new supervisor took over".to_owned());
                None
            }
            Err(BringUpError::Ended(exit)) => self.end_of_adopted(exit).await,
            Err(error) if !starting || error.for_want() => {
                // The guest runs on, and is taken over once that is possible. Started once, it
                // is not killed for being slow or deaf: no supervisor that had it would do so.
                let message = format!("can't be taken over yet: {}", chain(&error));
                self.warn_once(&message);
                None
            }
            Err(error) => {
                let message = format!("could not be taken over: {}", chain(&error));
                self.add_event(EventType::Warning, message);
                let exit = self.kill_vmm().await.unwrap_or_else(unseen);
                self.end_of_adopted(exit).await
            }
        };
        if next.is_some() {
            self.refuse_held(held);
            return next;
        }
        held
    }

    /// A request that was held and that a later one has overtaken.
    fn refuse_held(&self, held: Option<Envelope>) {
        if let Some(envelope) = held {
            let refused = MachineError::Refused {
                id: self.record.id.clone(),
                state: view::wire_state(self.record.state),
                reason: RefusalReason::Busy,
            };
            let _ = envelope.reply.send(Err(refused));
        }
    }

    async fn end_of_adopted(&mut self, exit: VmmExit) -> Option<Envelope> {
        if self.record.state == State::Starting {
            self.vmm = None;
            return self.start_again().await;
        }
        self.note_vmm_end(exit).await
    }

    /// Begins a start anew that was cut off.
    pub(crate) async fn start_again(&mut self) -> Option<Envelope> {
        self.start(Trace::begin(), None).await
    }

    /// The VMM ended while no supervisor looked.
    pub(crate) async fn note_unseen_end(&mut self) -> Option<Envelope> {
        let path = self.dir.exit_report();
        let (id, generation) = (&self.record.id, self.record.generation);
        let report = crate::vmm_process::read_exit_report(&path, id, generation);
        self.note_vmm_end(VmmExit {
            code: None,
            signal: None,
            report,
        })
        .await
    }

    /// Finishes a suspend whose VMM still runs.
    pub(crate) async fn adopt_suspending(&mut self) -> Option<Envelope> {
        let (socket, generation) = (self.dir.control_socket(), self.record.generation);
        let connected =
            Control::connect(&socket, &self.record.id, generation, GREETING_LIMIT).await;
        match connected {
            Ok(control) => {
                // Its first suspend has nobody to answer to; it is broken off and asked for anew.
                crate::machine::suspend::cancel(&control).await;
                self.control = Some(control);
                let interrupt = self.carry_out_suspend(Trace::begin()).await;
                if self.record.state != State::Started {
                    return interrupt;
                }
                // It was broken off or failed: the guest that goes on is ours to connect to, also
                // where the start that broke it off has thereby got what it wants.
                let next = match interrupt {
                    Some(envelope) => self.answer_at_once(envelope).await,
                    None => None,
                };
                if next.is_some() {
                    return next;
                }
                self.adopt().await
            }
            Err(error) if exhausted::is_cause(&error) => {
                let message = format!("its suspend can't be followed yet: {}", chain(&error));
                self.warn_once(&message);
                None
            }
            Err(error) => {
                tracing::warn!(machine_id = self.record.id, %error, "cannot reach a saving VMM");
                let vmm = self.vmm.clone()?;
                let ended = tokio::time::timeout(GREETING_LIMIT, vmm.exited()).await;
                // Killing what has ended is harmless, and takes its sockets along.
                let killed = self.kill_vmm().await;
                let exit = ended.ok().or(killed).unwrap_or_else(unseen);
                self.note_vmm_end(exit).await
            }
        }
    }

    /// The image is whole and the VMM gone.
    pub(crate) fn note_suspended(&mut self) {
        let timing = Trace::begin().finish(Operation::Suspend, self.record.generation);
        let message =
            Some("finished while nobody waited for it; its phases are not known".to_owned());
        let note = Note {
            timing: Some(timing),
            message,
            ..Note::default()
        };
        self.transition_soon(Event::SuspendDone, note, |record| {
            record.image_generation = Some(record.generation);
            record.facts.image_unusable = None;
            record.vmm = None;
        });
        self.settle(None);
    }

    /// Removes what is left of a machine that was being destroyed.
    pub(crate) async fn finish_destroy(&mut self) {
        self.destroy(None).await;
    }
}

fn unseen() -> VmmExit {
    VmmExit {
        code: None,
        signal: None,
        report: None,
    }
}
