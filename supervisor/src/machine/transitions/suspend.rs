//! Suspending: the VMM saves the guest and ends. Until the image is whole a start or a stop cancels
//! it, and the same VMM runs on.

use std::pin::pin;
use std::time::Duration;

use machine_api::{EventType, Operation, StartKind};
use tokio::time::{Instant, sleep, timeout};
use vmm_control::{Reply, RequestBody, SuspendFigures};

use crate::error_chain::error_chain;
use crate::fail_point;
use crate::machine::driver::{Attended, Driver, Effect};
use crate::machine::request::{Command, Granted, Request, Until};
use crate::model::event::EventDetails;
use crate::model::recovery::LeftImage;
use crate::model::state::Event;
use crate::model::timing::Trace;
use crate::vmm_process::{Control, ControlError};

/// Deadline for the VMM to end once its image is whole.
const EXIT_LIMIT: Duration = Duration::from_secs(10);
/// How long a VMM may take to leave a cancelled suspend, and the wait between requests meanwhile.
const BUSY_LIMIT: Duration = Duration::from_secs(10);
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Deadline for an answer to a cancellation.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);
/// Message about a suspend that a start has cancelled.
const CANCELLED_BY_START: &str = "a start cancelled the suspend";

impl Driver {
    /// Suspends a started machine.
    pub(in crate::machine) async fn suspend(
        &mut self,
        trace: Trace,
        request: Request,
    ) -> Option<Request> {
        let previous = self.record.state;
        let details = EventDetails::caused_by(request.source());
        if let Err(error) = self.transition(Event::SuspendBegun, details, |_| {}).await {
            request.refuse(error);
            return None;
        }
        fail_point::reach("suspend.stored");
        self.admitted(Some(request), previous);
        self.carry_out_suspend(trace).await
    }

    /// From `suspending` to `suspended`, or back to `started` if it fails or is cancelled.
    pub(super) async fn carry_out_suspend(&mut self, mut trace: Trace) -> Option<Request> {
        trace.mark("admission");
        let Some(control) = self.control.clone() else {
            self.abandon("the VMM's control connection is lost".to_owned(), &trace);
            return None;
        };
        let body = RequestBody::Suspend {
            image: self.dir.image(),
        };
        let limit = self.context.configuration.suspend_timeout;
        let mut saving: Effect<'_, _> = Box::pin(save(&control, body, limit));
        let (mut result, interrupt) = match self.attend(&mut saving).await {
            Attended::Done(result) => (result, None),
            // A destroy kills the VMM.
            Attended::Interrupted(request)
                if matches!(request.command, Command::Destroy { .. }) =>
            {
                return Some(request);
            }
            Attended::Interrupted(request) => {
                cancel(&control).await;
                let result = saving.await;
                if request.begun_from.is_some() {
                    // The machine is stopping already, whether the image became whole or not.
                    return Some(request);
                }
                (result, Some(request))
            }
        };
        if let Err(ControlError::Closed) = result {
            result = self.figures_after_end().await.map(Reply::Suspended);
        }
        match result {
            Ok(Reply::Suspended(figures)) => {
                self.finish_suspend(&figures, trace).await;
                interrupt
            }
            Ok(_) => {
                self.abandon(
                    "the VMM gave an unexpected answer to the suspend".to_owned(),
                    &trace,
                );
                interrupt
            }
            Err(ControlError::Closed) => {
                // The guest or the VMM ended; the event loop deals with that next.
                interrupt
            }
            Err(error) => self.abandon_after(&error, interrupt, &trace),
        }
    }

    /// The VMM ended without a reply. If its exit report says that the image is whole, the suspend
    /// succeeded.
    async fn figures_after_end(&mut self) -> Result<SuspendFigures, ControlError> {
        let vmm = self.vmm.clone().ok_or(ControlError::Closed)?;
        let exit = timeout(EXIT_LIMIT, vmm.exited())
            .await
            .map_err(|_| ControlError::Closed)?;
        match self.left_image(&exit) {
            LeftImage::Own => Ok(no_figures()),
            LeftImage::None | LeftImage::Earlier { .. } => Err(ControlError::Closed),
        }
    }

    async fn finish_suspend(&mut self, figures: &SuspendFigures, mut trace: Trace) {
        fail_point::reach("suspend.saved");
        trace.add_vmm(&figures.phases);
        if let Some(vmm) = self.vmm.clone()
            && timeout(EXIT_LIMIT, vmm.exited()).await.is_err()
        {
            self.add_event(
                EventType::Warning,
                "the VMM did not end by itself".to_owned(),
            );
        }
        // Nothing may write to the image any more. Killing a VMM that has ended does no harm.
        self.kill_vmm().await;
        trace.mark("vmm_exit");
        fail_point::reach("suspend.ended");
        let mut timing = trace.finish(Operation::Suspend, self.record.generation);
        timing.image_bytes_written = Some(figures.image_bytes_written);
        timing.memory_bytes_written = Some(figures.memory_bytes_written);
        timing.image_bytes_allocated = Some(figures.image_bytes_allocated);
        let details = EventDetails {
            timing: Some(timing),
            ..EventDetails::default()
        };
        self.become_suspended(self.record.generation, details);
    }

    /// The image that `generation` wrote is whole, and the VMM has ended.
    pub(super) fn become_suspended(&mut self, generation: u64, details: EventDetails) {
        self.transition_then_store(Event::SuspendDone, details, |record| {
            record.image_generation = Some(generation);
            record.facts.image_unusable = None;
            record.vmm = None;
        });
        self.answer_waiters(None);
    }

    /// The suspend was cancelled or failed. A start that cancelled it is answered.
    fn abandon_after(
        &mut self,
        error: &ControlError,
        interrupt: Option<Request>,
        trace: &Trace,
    ) -> Option<Request> {
        let cancelled = matches!(error, ControlError::Failed { kind, .. } if kind == "cancelled");
        let message = error_chain(error);
        match interrupt {
            Some(request) if cancelled && matches!(request.command, Command::Start { .. }) => {
                let start = StartKind::SuspendCancelled;
                fail_point::reach("suspend.cancelled");
                self.record.facts.last_start = Some(start.clone());
                let details = EventDetails {
                    source: request.source(),
                    start: Some(start.clone()),
                    message: Some(CANCELLED_BY_START.to_owned()),
                    ..EventDetails::default()
                };
                self.transition_then_store(Event::SuspendAbandoned, details, |_| {});
                let previous_state = machine_api::MachineState::Suspending;
                let start = (request.until == Until::Completed).then_some(start);
                let _ = request.reply.send(Ok(Granted {
                    previous_state,
                    start,
                }));
                self.answer_waiters(Some(CANCELLED_BY_START));
                None
            }
            interrupt => {
                self.abandon(message, trace);
                interrupt
            }
        }
    }

    fn abandon(&mut self, message: String, trace: &Trace) {
        self.log
            .add_note(&format!("could not be suspended: {message}"));
        let mut timing = trace.finish(Operation::Suspend, self.record.generation);
        timing.error = Some(message.clone());
        let details = EventDetails {
            timing: Some(timing),
            message: Some(message.clone()),
            ..EventDetails::default()
        };
        self.transition_then_store(Event::SuspendAbandoned, details, |_| {});
        self.answer_waiters(Some(&message));
    }
}

/// Requests the suspend, and again while the VMM is busy with one that was just cancelled.
async fn save(
    control: &Control,
    body: RequestBody,
    limit: Duration,
) -> Result<Reply, ControlError> {
    let deadline = Instant::now() + BUSY_LIMIT;
    loop {
        match save_within(control, body.clone(), limit).await {
            Err(ControlError::Failed { kind, .. })
                if kind == "busy" && Instant::now() < deadline =>
            {
                sleep(BUSY_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// Requests the suspend and cancels it at its deadline. The VMM's answer decides: its image may be
/// whole already, and then the guest is in there and nowhere else.
async fn save_within(
    control: &Control,
    body: RequestBody,
    limit: Duration,
) -> Result<Reply, ControlError> {
    let what = "save the machine";
    let mut request = pin!(control.request(what, body, limit + CANCEL_LIMIT));
    if let Ok(answer) = timeout(limit, request.as_mut()).await {
        return answer;
    }
    cancel(control).await;
    match request.await {
        Err(ControlError::Failed { kind, .. }) if kind == "cancelled" => {
            Err(ControlError::Deadline { what, limit })
        }
        answer => answer,
    }
}

/// Cancels the suspend that a VMM works on; does nothing if there is none.
pub(super) async fn cancel(control: &Control) {
    let request = RequestBody::CancelSuspend;
    if let Err(error) = control
        .request("cancel the suspend", request, CANCEL_LIMIT)
        .await
    {
        tracing::warn!(%error, "cannot cancel a suspend");
    }
}

/// For a suspend whose reply was lost.
fn no_figures() -> SuspendFigures {
    SuspendFigures {
        phases: Vec::new(),
        memory_bytes_written: 0,
        image_bytes_written: 0,
        image_bytes_allocated: 0,
        pages_changed: 0,
        dirty_source: String::new(),
    }
}
