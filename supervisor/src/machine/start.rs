//! Starting and resuming: launch a VMM, wait until the guest is ready, open the session.
//!
//! An image that the VMM refuses makes the start go on as a cold boot, and says so. A resume
//! that fails before its image was consumed leaves the machine as suspended as it was.

use machine_api::{Attempt, EventType, Operation, StartKind, Timing};
use vmm_control::{ExitReason, exit_code};

use crate::clock;
use crate::fail_point;
use crate::guest::GuestAddress;
use crate::machine::bring_up::{BringUp, BringUpError, Up, holding};
use crate::machine::driver::{Attended, Driver, Effect};
use crate::machine::handle::{Envelope, Live};
use crate::machine::launch::{Plan, effective, launch_spec};
use crate::machine::publish::{Note, Source};
use crate::machine::readiness::chain;
use crate::machine::session::GuestSession;
use crate::machine::state::Event;
use crate::machine::timing::Trace;
use crate::machine::{MachineError, config, view};
use crate::vmm_process::{VmmExit, VmmProcess};

/// How one launch ended.
enum Launched {
    Up(Box<Up>),
    Refused {
        reason: String,
    },
    Failed {
        message: String,
    },
    /// It may be ready, but can't be asked now.
    OutOfReach {
        message: String,
    },
    Interrupted(Envelope),
}

impl Driver {
    /// Starts the machine from whatever there is; answers `envelope` once that is stored.
    pub(super) async fn start(
        &mut self,
        mut trace: Trace,
        envelope: Option<Envelope>,
    ) -> Option<Envelope> {
        let previous = self.record.state;
        let asked_by = envelope.as_ref().map(Envelope::source);
        let begun = match self.plan() {
            Ok((plan, cold_reason)) => {
                let begun = self.begin_start(asked_by, &plan, cold_reason);
                begun.await.map(|()| plan)
            }
            Err(error) => Err(error),
        };
        let mut plan = match begun {
            Ok(plan) => plan,
            Err(error) => {
                self.refuse_start(envelope, &error);
                return None;
            }
        };
        fail_point::reach("start.stored");
        self.admitted(envelope, previous);
        loop {
            let mut attempts = Vec::new();
            let resumed = matches!(plan, Plan::Resume { .. });
            match self.launch(&plan, &mut trace, &mut attempts).await {
                Launched::Up(up) => {
                    self.finish_start(*up, resumed, &trace, attempts);
                    return None;
                }
                Launched::Refused { reason } => {
                    self.log
                        .add_note(&format!("the image was refused: {reason}"));
                    match self.begin_boot_instead(reason).await {
                        Ok(boot) => plan = boot,
                        Err(error) => {
                            self.fail_start(chain(&error), resumed, &trace, attempts);
                            return None;
                        }
                    }
                    fail_point::reach("start.refused");
                }
                Launched::Failed { message } => {
                    self.fail_start(message, resumed, &trace, attempts);
                    return None;
                }
                Launched::OutOfReach { message } => {
                    // Killed, it would take with it what the image held. It is asked again.
                    self.warn_once(&format!("can't be reached: {message}; it is tried again"));
                    self.settle(Some(&message));
                    return None;
                }
                Launched::Interrupted(envelope) => {
                    self.kill_vmm().await;
                    return Some(envelope);
                }
            }
        }
    }

    /// Boot or resume? With the reason where a resume would be expected and can't be.
    fn plan(&self) -> Result<(Plan, Option<String>), MachineError> {
        let facts = &self.record.facts;
        // Set already where a boot for that reason was cut off or failed.
        let mut cold_reason = facts.cold_reason.clone();
        if let Some(image_generation) = self.record.image_generation {
            let there = self.dir.image_manifest().exists();
            match (&facts.image_unusable, there) {
                (None, true) => return Ok((Plan::Resume { image_generation }, None)),
                (Some(reason), _) => cold_reason = Some(reason.clone()),
                (None, false) => cold_reason = Some("image missing".to_owned()),
            }
        }
        Ok((self.boot()?, cold_reason))
    }

    fn boot(&self) -> Result<Plan, MachineError> {
        let image = self.host.images.find(&self.record.config.image)?;
        Ok(Plan::Boot(image))
    }

    /// The VMM refused the image: a cold boot from now on, whoever carries that on.
    async fn begin_boot_instead(&mut self, reason: String) -> Result<Plan, MachineError> {
        let boot = self.boot()?;
        let begun = self.begin_start(None, &boot, Some(reason));
        begun.await.map(|()| boot)
    }

    /// What is stored of the plan is what a later supervisor knows of it: whether the guest
    /// that it finds was resumed or has yet to be told what to run.
    async fn begin_start(
        &mut self,
        asked_by: Option<Source>,
        plan: &Plan,
        cold_reason: Option<String>,
    ) -> Result<(), MachineError> {
        let from_nothing = matches!(plan, Plan::Boot(_));
        let note = Note {
            source: asked_by.unwrap_or_default(),
            ..Note::default()
        };
        self.transition(Event::StartBegun, note, |record| {
            record.generation += 1;
            record.vmm = None;
            let facts = &mut record.facts;
            facts.stop_requested = false;
            facts.destroy_due = false;
            facts.cold_reason = cold_reason;
            if asked_by.is_some() {
                // No restart by policy, and so the end of a row of those.
                facts.restarts = 0;
                facts.restart_due = false;
            }
            if from_nothing {
                record.image_generation = None;
            }
        })
        .await
    }

    fn refuse_start(&mut self, envelope: Option<Envelope>, error: &MachineError) {
        let message = chain(error);
        self.warn_once(&format!("could not be started: {message}"));
        if let Some(envelope) = envelope {
            let id = self.record.id.clone();
            let state = view::wire_state(self.record.state);
            let _ = envelope.reply.send(Err(MachineError::Failed {
                id,
                state,
                message: message.clone(),
            }));
        }
        self.settle(Some(&format!("could not be started: {message}")));
    }

    async fn launch(
        &mut self,
        plan: &Plan,
        trace: &mut Trace,
        attempts: &mut Vec<Attempt>,
    ) -> Launched {
        trace.mark("admission");
        let host = self.host.clone();
        let mut permit: Effect<'_, _> = Box::pin(host.launches.clone().acquire_owned());
        let permit = match self.attend(&mut permit).await {
            Attended::Done(permit) => permit.ok(),
            Attended::Interrupted(envelope) => return Launched::Interrupted(envelope),
        };
        trace.mark("queue");
        let resumed = matches!(plan, Plan::Resume { .. });
        if !resumed {
            self.log.begin_boot(self.record.generation);
        }
        let spec = launch_spec(&host, &self.record, &self.dir, plan);
        let spawned_ns = clock::monotonic_ns();
        let vmm = match VmmProcess::spawn(&spec) {
            Ok(vmm) => vmm,
            Err(error) => {
                return Launched::Failed {
                    message: chain(&error),
                };
            }
        };
        fail_point::reach("start.spawned");
        if !resumed {
            fail_point::reach("boot.spawned");
        }
        self.vmm = Some(vmm.clone());
        self.record.vmm = Some(vmm.identity().clone());
        self.store_record_soon();
        self.show(None);
        let bring_up = self.bring_up(vmm, spawned_ns, resumed);
        let mut work: Effect<'_, _> = Box::pin(holding(permit, bring_up.run(trace, attempts)));
        let result = match self.attend(&mut work).await {
            Attended::Done(result) => result,
            Attended::Interrupted(envelope) => return Launched::Interrupted(envelope),
        };
        match result {
            Ok(up) => Launched::Up(Box::new(up)),
            Err(BringUpError::Ended(exit)) if resumed && is_refusal(&exit) => {
                self.kill_vmm().await;
                Launched::Refused {
                    reason: exit.in_words(),
                }
            }
            Err(error) if error.for_want() => Launched::OutOfReach {
                message: chain(&error),
            },
            Err(error) => {
                let message = chain(&error);
                self.kill_vmm().await;
                Launched::Failed { message }
            }
        }
    }

    pub(super) fn bring_up(&self, vmm: VmmProcess, spawned_ns: u64, resumed: bool) -> BringUp {
        let settings = effective(&self.record, &self.host.configuration.defaults);
        let launch = config::launch_request(&self.record.config, &self.record.name);
        BringUp {
            machine_id: self.record.id.clone(),
            dir: self.dir.clone(),
            vmm,
            address: GuestAddress {
                socket: self.dir.vsock_socket(),
                generation: self.record.generation,
            },
            limits: settings.readiness,
            monitor_first: settings.monitor_first,
            resumed,
            launch: launch.filter(|_| !resumed),
            spawned_ns,
        }
    }

    /// The guest is ready: the machine is started.
    pub(super) fn finish_start(
        &mut self,
        up: Up,
        resumed: bool,
        trace: &Trace,
        attempts: Vec<Attempt>,
    ) {
        fail_point::reach("start.ready");
        let start = match (resumed, &self.record.facts.cold_reason) {
            (true, _) => StartKind::Resumed,
            (false, Some(reason)) => StartKind::ColdBooted {
                reason: reason.clone(),
            },
            (false, None) => StartKind::Booted,
        };
        let mut timing = self.timing(resumed, trace, &attempts);
        timing.start = Some(start.clone());
        timing.guest = Some(view::guest(&up.status));
        let older = up.status.open_vsocks.older_generations;
        self.enter_session(up);
        let note = Note {
            timing: Some(timing),
            start: Some(start.clone()),
            ..Note::default()
        };
        self.transition_soon(Event::Ready, note, |record| {
            record.image_generation = None;
            let facts = &mut record.facts;
            facts.image_unusable = None;
            facts.cold_reason = None;
            facts.restart_due = false;
            facts.last_start = Some(start);
            facts.readiness = attempts;
            facts.note_leaks(older, record.generation);
        });
        fail_point::reach("start.shown");
        if older > 0 {
            let message = self.record.facts.warnings.join("; ");
            self.add_event(EventType::Warning, message);
        }
        self.settle(None);
    }

    /// Begins the long-lived connections and lets others use the guest.
    pub(super) fn enter_session(&mut self, up: Up) {
        let address = GuestAddress {
            socket: self.dir.vsock_socket(),
            generation: self.record.generation,
        };
        let with_output = config::launch_request(&self.record.config, &self.record.name).is_some();
        let session = GuestSession::begin(&address, up.monitor, &self.log, with_output);
        let learnt = session.learnt();
        self.publish_live(Some(Live {
            address,
            control: up.control.clone(),
            learnt,
        }));
        self.control = Some(up.control);
        self.session = Some(session);
        self.activity.touch();
        self.started_at = Some(tokio::time::Instant::now());
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

    fn fail_start(
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
        let intact = resumed && self.dir.image_manifest().exists();
        let event = if intact {
            Event::StartRolledBack
        } else {
            Event::StartFailed
        };
        let note = Note {
            timing: Some(timing),
            message: Some(message.clone()),
            ..Note::default()
        };
        self.transition_soon(event, note, |record| {
            record.vmm = None;
            record.facts.readiness = attempts;
            if !intact {
                record.image_generation = None;
            }
        });
        self.settle(Some(&message));
    }
}

fn is_refusal(exit: &VmmExit) -> bool {
    exit.reason() == Some(ExitReason::ImageRefused) || exit.code == Some(exit_code::IMAGE_REFUSED)
}
