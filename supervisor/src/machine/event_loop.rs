//! The loop of a driver: what happens to a machine, and which transition follows.

use std::time::Duration;

use tokio::time::Instant;

use crate::deadline;
use crate::machine::driver::Driver;
use crate::machine::found_vmm::FoundVmm;
use crate::machine::request::{Command, Request};
use crate::model::state::State;
use crate::model::timing::Trace;
use crate::vmm_process::{VmmExit, VmmProcess};

/// Waits before a transition that could not go on is retried: the first, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(15);

impl Driver {
    /// Drives the machine until it is destroyed or the supervisor ends. `found` is what an earlier
    /// supervisor has left, if there was one.
    pub(crate) async fn run(mut self, found: Option<FoundVmm>) {
        if let Some(found) = found {
            let interrupt = Box::pin(self.take_over(found)).await;
            self.follow_up(interrupt).await;
        }
        self.store_machine_file().await;
        if self.record.facts.start_due && self.record.state == State::Created {
            let interrupt = Box::pin(self.start_first()).await;
            self.follow_up(interrupt).await;
        }
        while self.record.state != State::Destroyed {
            self.plan_retry();
            self.plan_another_restart();
            let vmm = self.vmm.clone();
            let restart_at = self.restart_at;
            let retry_at = self.retry.map(|(instant, _)| instant);
            let started = self.record.state == State::Started;
            tokio::select! {
                biased;
                // During a transition that waits for its retry, the retry deals with the end.
                exit = ended(vmm.as_ref()), if retry_at.is_none() || started => {
                    let interrupt = Box::pin(self.respond_to_vmm_end(exit)).await;
                    self.follow_up(interrupt).await;
                }
                () = deadline::reached(restart_at) => {
                    self.restart_at = None;
                    let interrupt = Box::pin(self.start(Trace::begin(), None)).await;
                    self.follow_up(interrupt).await;
                }
                () = deadline::reached(retry_at) => {
                    let vmm = self.vmm.clone();
                    match FoundVmm::from_process(&self.record, &self.dir, vmm) {
                        Ok(found) => {
                            self.vmm = None;
                            let interrupt = Box::pin(self.take_over(found)).await;
                            self.follow_up(interrupt).await;
                        }
                        // Tried again, as the transition itself.
                        Err(error) => self.warn_once(&format!("cannot look at its image: {error}")),
                    }
                }
                () = self.unsaved.retry_due() => self.store_unsaved(),
                message = self.inbox.recv() => match message {
                    Some(message) => {
                        let request = self.answer(message).await;
                        self.carry_out_all(request).await;
                    }
                    None => return,
                },
            }
        }
    }

    /// A transition is retried after a while if its steps could not be stored, its files not
    /// removed or its guest not asked. A retry does what a new supervisor would.
    fn plan_retry(&mut self) {
        // So is the adoption of a guest that this supervisor could not connect to.
        let unconnected = self.record.state == State::Started && self.session.is_none();
        if !self.record.state.is_transition() && !unconnected && !self.is_destroy_due() {
            self.retry = None;
            return;
        }
        let now = Instant::now();
        self.retry = match self.retry {
            Some((instant, wait)) if instant > now => Some((instant, wait)),
            Some((_, wait)) => {
                let wait = (wait * 2).min(RETRY_MOST);
                Some((now + wait, wait))
            }
            None => Some((now + RETRY_FIRST, RETRY_FIRST)),
        };
    }

    /// Carries out an admitted request, then the one that interrupted it, and so on.
    async fn carry_out_all(&mut self, admitted: Option<Request>) {
        let mut next = admitted;
        while let Some(request) = next {
            self.restart_at = None;
            let interrupt = Box::pin(self.carry_out(request)).await;
            next = self.admit_again(interrupt).await;
        }
    }

    /// Carries out the request that interrupted a transition, if one did.
    async fn follow_up(&mut self, interrupt: Option<Request>) {
        let admitted = self.admit_again(interrupt).await;
        self.carry_out_all(admitted).await;
    }

    /// A request that interrupts was admitted in the state that it interrupted. Unless its own
    /// transition is stored by now, it is admitted again in the state that there is now.
    async fn admit_again(&mut self, interrupt: Option<Request>) -> Option<Request> {
        match interrupt {
            Some(request) if request.begun_from.is_none() => self.admit(request).await,
            begun => begun,
        }
    }

    async fn carry_out(&mut self, request: Request) -> Option<Request> {
        let trace = request.trace.clone();
        match &request.command {
            Command::Start { cold } => {
                let cold = *cold;
                self.start_as(cold, trace, Some(request)).await
            }
            Command::Suspend => self.suspend(trace, request).await,
            Command::Stop(stop) => {
                let stop = *stop;
                self.stop(stop, trace, Some(request)).await
            }
            Command::Restart { stop, force } => {
                let stop = (!*force).then_some(*stop);
                self.restart(stop, trace, request).await
            }
            Command::Update(_) => self.update(trace, request).await,
            Command::Destroy { .. } => {
                self.destroy(Some(request)).await;
                None
            }
        }
    }
}

async fn ended(vmm: Option<&VmmProcess>) -> VmmExit {
    match vmm {
        Some(vmm) => vmm.exited().await,
        None => std::future::pending().await,
    }
}
