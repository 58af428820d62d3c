//! Starting and resuming: launch a VMM, wait until the guest is ready, open the session.
//!
//! If the VMM refuses the image as damaged, that is set aside, and the start goes on as a cold boot with
//! that reason. A resume that fails before it consumed the image leaves the machine suspended: also
//! where the image does not fit the host, or where nobody could look at it. Whether such a machine boots
//! without its memory is for its user to decide.

use guest_protocol::common_version;
use machine_api::Attempt;
use vmm_control::{ExitReason, exit_code};

use crate::error_chain::error_chain;
use crate::guest::GuestAddress;
use crate::machine::bring_up::{BringUp, BringUpError, ReadyGuest, with_permit};
use crate::machine::disk_claims::holds_disks;
use crate::machine::driver::{Attended, Driver, Effect};
use crate::machine::error::MachineError;
use crate::machine::launch::{Launch, launch_spec};
use crate::machine::main_process::launch_request;
use crate::machine::request::Request;
use crate::machine_folder::{remove_image, set_image_aside};
use crate::model::event::{EventDetails, Source};
use crate::model::state::Event;
use crate::model::timing::Trace;
use crate::vmm_process::{VmmExit, VmmProcess};
use crate::{clock, fail_point};

/// How a launch ended.
enum Launched {
    /// The guest is ready.
    Ready(Box<ReadyGuest>),
    /// The VMM refused the image.
    Refused { reason: String },
    /// The VMM or the guest failed.
    Failed { message: String },
    /// The supervisor is out of something, or of another release; the guest may be ready.
    Unreachable { message: String },
    /// It ended by itself before anybody could see that it was ready.
    Ended(VmmExit),
    /// A request interrupted it.
    Interrupted(Request),
}

impl Driver {
    /// Starts the machine from its image, or boots it; answers `request` once that is stored.
    pub(in crate::machine) async fn start(
        &mut self,
        trace: Trace,
        request: Option<Request>,
    ) -> Option<Request> {
        self.start_as(false, trace, request).await
    }

    /// Starts a machine that was created to be started.
    pub(in crate::machine) async fn start_first(&mut self) -> Option<Request> {
        self.start_asked_by(Some(Source::User), false, Trace::begin(), None)
            .await
    }

    /// As [`Self::start`]; `cold` boots the machine even if it has an image.
    pub(in crate::machine) async fn start_as(
        &mut self,
        cold: bool,
        trace: Trace,
        request: Option<Request>,
    ) -> Option<Request> {
        let asked_by = request.as_ref().map(Request::source);
        self.start_asked_by(asked_by, cold, trace, request).await
    }

    async fn start_asked_by(
        &mut self,
        asked_by: Option<Source>,
        cold: bool,
        mut trace: Trace,
        request: Option<Request>,
    ) -> Option<Request> {
        let previous = self.record.state;
        let begun = match self.choose_launch(cold) {
            Ok((launch, cold_reason)) => {
                let begun = self.begin_start(asked_by, &launch, cold_reason);
                begun.await.map(|()| launch)
            }
            Err(error) => Err(error),
        };
        let mut launch = match begun {
            Ok(launch) => launch,
            Err(error) => {
                self.refuse_start(request, error);
                return None;
            }
        };
        fail_point::reach("start.stored");
        self.admitted(request, previous);
        loop {
            let mut attempts = Vec::new();
            let resumed = matches!(launch, Launch::Resume { .. });
            match self.launch(&launch, &mut trace, &mut attempts).await {
                Launched::Ready(guest) => {
                    self.finish_start(*guest, resumed, &trace, attempts);
                    return None;
                }
                Launched::Refused { reason } => {
                    self.log
                        .add_note(&format!("the image is damaged and set aside: {reason}"));
                    match self.begin_boot_instead(reason).await {
                        Ok(boot) => launch = boot,
                        Err(error) => {
                            self.fail_start(error_chain(&error), resumed, &trace, attempts);
                            return None;
                        }
                    }
                    fail_point::reach("start.refused");
                }
                Launched::Failed { message } => {
                    self.fail_start(message, resumed, &trace, attempts);
                    return None;
                }
                Launched::Ended(exit) => return self.record_short_run(exit, resumed).await,
                Launched::Unreachable { message } => {
                    // Killing the VMM would lose what its image held; the start is retried.
                    self.warn_once(&format!("cannot be reached: {message}; it is tried again"));
                    self.answer_waiters(Some(&message));
                    return None;
                }
                Launched::Interrupted(request) => {
                    self.kill_vmm().await;
                    return Some(request);
                }
            }
        }
    }

    /// Resume or boot? A boot comes with a reason if a machine that has an image is booted.
    fn choose_launch(&self, cold: bool) -> Result<(Launch, Option<String>), MachineError> {
        let (id, mounts) = (&self.record.id, &self.record.config.mounts);
        self.context.disk_claims.claim(id, mounts)?;
        let facts = &self.record.facts;
        // There is a reason already if a boot for it was interrupted or failed.
        let mut cold_reason = facts.cold_reason.clone();
        if let Some(image_generation) = self.record.image_generation {
            // That nobody can look does not mean that it is missing.
            let exists = self.dir.image_manifest().try_exists();
            let exists = exists.map_err(|source| MachineError::Files {
                what: "look for the machine's image",
                source,
            })?;
            match (&facts.image_unusable, exists) {
                (None, true) if cold => {
                    let boot = self.boot()?;
                    self.set_image_aside(image_generation)?;
                    return Ok((boot, Some("a cold start was requested".to_owned())));
                }
                (None, true) => {
                    self.check_guest_protocol()?;
                    return Ok((Launch::Resume { image_generation }, None));
                }
                (Some(reason), _) => cold_reason = Some(reason.clone()),
                (None, false) if self.dir.image_set_aside(image_generation).exists() => {
                    cold_reason = Some("its image was set aside".to_owned());
                }
                (None, false) => cold_reason = Some("image missing".to_owned()),
            }
        }
        Ok((self.boot()?, cold_reason))
    }

    /// Whether the guest in the image can be spoken to. Asked while the image is still there.
    fn check_guest_protocol(&self) -> Result<(), MachineError> {
        match self.record.facts.guest_protocol {
            Some(theirs) if common_version(theirs).is_none() => {
                Err(MachineError::GuestProtocol { theirs })
            }
            _ => Ok(()),
        }
    }

    fn set_image_aside(&self, generation: u64) -> Result<(), MachineError> {
        set_image_aside(&self.dir, generation).map_err(|source| MachineError::Files {
            what: "set the image aside",
            source,
        })
    }

    fn boot(&self) -> Result<Launch, MachineError> {
        let image = self.context.images.find(&self.record.config.image)?;
        Ok(Launch::Boot(image))
    }

    /// The VMM refused the image, which is set aside: a cold boot from now on, also for a later
    /// supervisor.
    async fn begin_boot_instead(&mut self, reason: String) -> Result<Launch, MachineError> {
        let boot = self.boot()?;
        if let Some(generation) = self.record.image_generation {
            self.set_image_aside(generation)?;
        }
        let begun = self.begin_start(None, &boot, Some(reason));
        begun.await.map(|()| boot)
    }

    /// Stores that the start begins. A later supervisor learns from it whether the guest that it finds
    /// was resumed, or still has to be told which main process to run.
    async fn begin_start(
        &mut self,
        asked_by: Option<Source>,
        launch: &Launch,
        cold_reason: Option<String>,
    ) -> Result<(), MachineError> {
        let boots = matches!(launch, Launch::Boot(_));
        let details = EventDetails::caused_by(asked_by.unwrap_or(Source::Supervisor));
        self.transition(Event::StartBegun, details, |record| {
            record.generation += 1;
            record.vmm = None;
            let facts = &mut record.facts;
            facts.stop_requested = false;
            facts.destroy_due = false;
            facts.cold_reason = cold_reason;
            facts.broken = false;
            facts.start_due = false;
            facts.ending = None;
            if asked_by.is_some() {
                facts.restart_due = false;
            }
            if asked_by == Some(Source::User) {
                // Neither by policy nor for a connection, so both count from zero again.
                facts.restarts = 0;
                facts.short_runs = 0;
            }
            if boots {
                facts.guest_protocol = None;
                record.image_generation = None;
            }
        })
        .await
    }

    fn refuse_start(&mut self, request: Option<Request>, error: MachineError) {
        if !holds_disks(self.record.state) {
            self.context.disk_claims.release(&self.record.id);
        }
        if std::mem::take(&mut self.record.facts.start_due) {
            self.store_record_later();
        }
        let message = error_chain(&error);
        self.warn_once(&format!("could not be started: {message}"));
        if let Some(request) = request {
            request.refuse(match error {
                MachineError::Disk(_) => error,
                _ => self.failed(message.clone()),
            });
        }
        self.answer_waiters(Some(&format!("could not be started: {message}")));
    }

    async fn launch(
        &mut self,
        launch: &Launch,
        trace: &mut Trace,
        attempts: &mut Vec<Attempt>,
    ) -> Launched {
        trace.mark("admission");
        let context = self.context.clone();
        let mut permit: Effect<'_, _> = Box::pin(context.launches.clone().acquire_owned());
        let permit = match self.attend(&mut permit).await {
            Attended::Done(permit) => permit.ok(),
            Attended::Interrupted(request) => return Launched::Interrupted(request),
        };
        trace.mark("queue");
        let resumed = matches!(launch, Launch::Resume { .. });
        // Before anything is changed that a failure could not give back.
        let program = match context.vmm_program.check().await {
            Ok(program) => program,
            Err(error) => {
                return Launched::Failed {
                    message: error_chain(&error),
                };
            }
        };
        if !resumed {
            self.log.begin_boot(self.record.generation);
            // An image that a power failure has brought back must not be there once the guest changes its
            // disks.
            if let Err(error) = remove_image(&self.dir) {
                return Launched::Failed {
                    message: format!("cannot remove an old image: {error}"),
                };
            }
        }
        let spec = launch_spec(&context, &program, &self.record, &self.dir, launch);
        let spawned_ns = clock::monotonic_ns();
        let vmm = match VmmProcess::spawn(&spec) {
            Ok(vmm) => vmm,
            Err(error) => {
                return Launched::Failed {
                    message: error_chain(&error),
                };
            }
        };
        fail_point::reach("start.spawned");
        if !resumed {
            fail_point::reach("boot.spawned");
        }
        self.vmm = Some(vmm.clone());
        self.record.vmm = Some(vmm.identity().clone());
        self.store_record_later();
        self.show(None);
        let bring_up = self.bring_up(vmm, spawned_ns, resumed);
        let mut work: Effect<'_, _> = Box::pin(with_permit(permit, bring_up.run(trace, attempts)));
        let result = match self.attend(&mut work).await {
            Attended::Done(result) => result,
            Attended::Interrupted(request) => return Launched::Interrupted(request),
        };
        match result {
            Ok(guest) => Launched::Ready(Box::new(guest)),
            Err(BringUpError::Ended(exit)) if resumed && is_refusal(&exit) => {
                self.kill_vmm().await;
                Launched::Refused {
                    reason: exit.in_words(),
                }
            }
            Err(BringUpError::Ended(exit)) if exit.is_power_off() => Launched::Ended(exit),
            Err(error) if error.is_ours() => Launched::Unreachable {
                message: error_chain(&error),
            },
            Err(BringUpError::Ended(exit)) if exit.reason() == Some(ExitReason::ImageUnfit) => {
                self.kill_vmm().await;
                let message = format!(
                    "the image cannot be resumed here: {}; it is kept (a cold start boots the machine \
                     without it: `mctl start --cold`)",
                    exit.in_words()
                );
                Launched::Failed { message }
            }
            Err(error) => {
                let message = error_chain(&error);
                self.kill_vmm().await;
                Launched::Failed { message }
            }
        }
    }

    pub(super) fn bring_up(&self, vmm: VmmProcess, spawned_ns: u64, resumed: bool) -> BringUp {
        let defaults = &self.context.configuration.start_settings;
        let settings = defaults.overridden_by(self.record.config.vsock.as_ref());
        BringUp {
            machine_id: self.record.id.clone(),
            dir: self.dir.clone(),
            vmm,
            address: self.guest_address(),
            limits: settings.readiness,
            monitor_first: settings.monitor_first,
            resumed,
            // A resumed guest has its main process; the request may hold megabytes of files.
            launch: (!resumed)
                .then(|| launch_request(&self.record.config, &self.record.name))
                .flatten(),
            spawned_ns,
        }
    }

    /// Where guest-init is reached.
    pub(super) fn guest_address(&self) -> GuestAddress {
        let address = GuestAddress::new(self.dir.vsock_socket(), self.record.generation);
        match self.record.facts.guest_protocol {
            Some(protocol) => address.speaking(protocol),
            None => address,
        }
    }
}

fn is_refusal(exit: &VmmExit) -> bool {
    exit.reason() == Some(ExitReason::ImageRefused) || exit.code == Some(exit_code::IMAGE_REFUSED)
}
