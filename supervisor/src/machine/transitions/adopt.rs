//! Adopting: a new supervisor connects to a VMM that runs, and to its guest.

use std::time::Duration;

use machine_api::EventType;

use crate::error_chain::error_chain;
use crate::machine::bring_up::{BringUpError, with_permit};
use crate::machine::driver::{Attended, Driver, Effect};
use crate::machine::request::Request;
use crate::machine::transitions::suspend::cancel;
use crate::model::admission::RefusalReason;
use crate::model::recovery::LeftImage;
use crate::model::state::State;
use crate::model::timing::Trace;
use crate::vmm_process::{Control, VmmExit};
use crate::{clock, exhaustion, fail_point};

/// Deadline for a VMM to greet a new supervisor.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

impl Driver {
    /// Connects to a running guest and checks that it is ready.
    pub(super) async fn adopt(&mut self) -> Option<Request> {
        let vmm = self.vmm.clone()?;
        let mut trace = Trace::begin();
        let mut attempts = Vec::new();
        let starting = self.record.state == State::Starting;
        let resumed = self.record.image_generation.is_some() || !starting;
        let bring_up = self.bring_up(vmm, clock::monotonic_ns(), resumed);
        let adoptions = self.context.adoptions.clone();
        let mut work: Effect<'_, _> = Box::pin(async {
            let permit = adoptions.acquire_owned().await;
            with_permit(permit.ok(), bring_up.run(&mut trace, &mut attempts)).await
        });
        // A request that needs the guest waits until the guest is connected.
        let mut waiting = None;
        let result = loop {
            match self.attend(&mut work).await {
                Attended::Done(result) => break result,
                // A stop or a destroy ends the VMM by itself.
                Attended::Interrupted(request) if request.begun_from.is_some() => {
                    self.refuse_overtaken(waiting);
                    return Some(request);
                }
                Attended::Interrupted(request) => {
                    let overtaken = waiting.replace(request);
                    self.refuse_overtaken(overtaken);
                }
            }
        };
        drop(work);
        let next = match result {
            Ok(guest) if starting => {
                self.finish_start(guest, resumed, &trace, attempts);
                None
            }
            Ok(guest) => {
                fail_point::reach("adopt.ready");
                self.record.facts.guest_protocol = Some(guest.status.protocol);
                self.begin_session(guest);
                self.store_record_later();
                self.add_event(EventType::Adopt, "a new supervisor took over".to_owned());
                None
            }
            Err(BringUpError::Ended(exit)) => self.respond_to_adopted_end(exit).await,
            Err(error) if !starting || error.is_ours() => {
                // The guest runs on, and the adoption is retried. A machine that was started before
                // is not killed because it is slow or deaf now; the supervisor that started it
                // would not do that either.
                let message = format!("cannot be taken over yet: {}", error_chain(&error));
                self.warn_once(&message);
                None
            }
            Err(error) => {
                let message = format!("could not be taken over: {}", error_chain(&error));
                self.add_event(EventType::Warning, message);
                let exit = self.kill_vmm().await.unwrap_or_else(VmmExit::unseen);
                self.respond_to_adopted_end(exit).await
            }
        };
        if next.is_some() {
            self.refuse_overtaken(waiting);
            return next;
        }
        waiting
    }

    /// Refuses a request that waited and that a later one has overtaken.
    fn refuse_overtaken(&self, overtaken: Option<Request>) {
        if let Some(request) = overtaken {
            request.refuse(self.refused(RefusalReason::Busy));
        }
    }

    async fn respond_to_adopted_end(&mut self, exit: VmmExit) -> Option<Request> {
        if self.record.state == State::Starting {
            self.vmm = None;
            if exit.is_power_off() {
                let resumed = self.record.image_generation.is_some();
                return self.record_short_run(exit, resumed).await;
            }
            return self.start(Trace::begin(), None).await;
        }
        if let LeftImage::Earlier { generation } = self.left_image(&exit) {
            self.kill_vmm().await;
            return self.resume_again(generation).await;
        }
        self.respond_to_vmm_end(exit).await
    }

    /// Finishes a suspend whose VMM still runs.
    pub(super) async fn adopt_suspending(&mut self) -> Option<Request> {
        let (socket, generation) = (self.dir.control_socket(), self.record.generation);
        let connected =
            Control::connect(&socket, &self.record.id, generation, GREETING_LIMIT).await;
        match connected {
            Ok(control) => {
                // Nobody gets the answer to the suspend that it works on: that one is cancelled, and
                // a new one is requested.
                cancel(&control).await;
                self.control = Some(control);
                let interrupt = self.carry_out_suspend(Trace::begin()).await;
                if self.record.state != State::Started {
                    return interrupt;
                }
                // The suspend failed or was cancelled, and the guest runs on: connect to it. A start
                // that cancelled it has what it wants and is answered by `admit`.
                let next = match interrupt {
                    Some(request) => self.admit(request).await,
                    None => None,
                };
                if next.is_some() {
                    return next;
                }
                self.adopt().await
            }
            Err(error) if exhaustion::is_exhaustion(&error) => {
                let message = format!(
                    "its suspend cannot be followed yet: {}",
                    error_chain(&error)
                );
                self.warn_once(&message);
                None
            }
            Err(error) => {
                tracing::warn!(machine_id = self.record.id, %error, "cannot reach a saving VMM");
                let vmm = self.vmm.clone()?;
                let ended = tokio::time::timeout(GREETING_LIMIT, vmm.exited()).await;
                // Killing a VMM that has ended does no harm, and removes its sockets.
                let killed = self.kill_vmm().await;
                let exit = ended.ok().or(killed).unwrap_or_else(VmmExit::unseen);
                self.respond_to_vmm_end(exit).await
            }
        }
    }
}
