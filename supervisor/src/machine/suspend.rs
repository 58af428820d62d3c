//! Suspending: the VMM saves the guest and ends. Until the image is whole, a start or a stop
//! breaks it off and the same process goes on.

use std::pin::pin;
use std::time::Duration;

use machine_api::{EventType, Operation, StartKind};
use tokio::time::{Instant, sleep, timeout};
use vmm_control::{Reply, RequestBody, SuspendFigures};

use crate::fail_point;
use crate::machine::driver::{Attended, Driver, Effect};
use crate::machine::handle::{Envelope, Granted, Order, Until};
use crate::machine::publish::Note;
use crate::machine::readiness::chain;
use crate::machine::state::Event;
use crate::machine::timing::Trace;
use crate::vmm_process::{Control, ControlError};

/// Deadline for the VMM to end once its image is whole.
const EXIT_LIMIT: Duration = Duration::from_secs(10);
/// How long a VMM may take to get over a suspend that was broken off, and how often it is asked.
const BUSY_LIMIT: Duration = Duration::from_secs(10);
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Deadline for an answer to a cancellation.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);

impl Driver {
    /// Suspends a started machine.
    pub(super) async fn suspend(&mut self, trace: Trace, envelope: Envelope) -> Option<Envelope> {
        let previous = self.record.state;
        let note = Note::by(Some(&envelope));
        if let Err(error) = self.transition(Event::SuspendBegun, note, |_| {}).await {
            let _ = envelope.reply.send(Err(error));
            return None;
        }
        fail_point::reach("suspend.stored");
        self.admitted(Some(envelope), previous);
        self.carry_out_suspend(trace).await
    }

    /// From `suspending` to wherever it leads. Also finishes what an earlier supervisor began.
    pub(crate) async fn carry_out_suspend(&mut self, mut trace: Trace) -> Option<Envelope> {
        trace.mark("admission");
        let Some(control) = self.control.clone() else {
            self.abandon("the VMM's control connection is lost".to_owned(), &trace);
            return None;
        };
        let body = RequestBody::Suspend {
            image: self.dir.image(),
        };
        let limit = self.host.configuration.suspend_timeout;
        let request = save(&control, body, limit);
        let mut request: Effect<'_, _> = Box::pin(request);
        let (mut result, interrupt) = match self.attend(&mut request).await {
            Attended::Done(result) => (result, None),
            Attended::Interrupted(envelope) => {
                if !matches!(envelope.order, Order::Destroy { .. }) {
                    cancel(&control).await;
                    let result = request.await;
                    if envelope.begun_from.is_none() {
                        (result, Some(envelope))
                    } else {
                        // Already stopping, whatever became of the image.
                        return Some(envelope);
                    }
                } else {
                    return Some(envelope);
                }
            }
        };
        if let Err(ControlError::Closed) = result {
            result = self.ended_while_suspending().await.map(Reply::Suspended);
        }
        match result {
            Ok(Reply::Suspended(figures)) => {
                self.finish_suspend(&figures, trace).await;
                interrupt
            }
            Ok(_) => {
                self.abandon(
                    "the VMM answered the suspend with something else".to_owned(),
                    &trace,
                );
                interrupt
            }
            Err(ControlError::Closed) => {
                // The guest or the VMM ended; the driver's loop sees the exit next.
                interrupt
            }
            Err(error) => self.abandon_for(interrupt, &error, &trace),
        }
    }

    /// The reply may be lost although the image is whole: the exit report tells.
    async fn ended_while_suspending(&mut self) -> Result<SuspendFigures, ControlError> {
        let vmm = self.vmm.clone().ok_or(ControlError::Closed)?;
        let exit = timeout(EXIT_LIMIT, vmm.exited())
            .await
            .map_err(|_| ControlError::Closed)?;
        if self.is_in_image(&exit) {
            Ok(no_figures())
        } else {
            Err(ControlError::Closed)
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
        // Killing what has ended is harmless, and nothing must write to the image any more.
        self.kill_vmm().await;
        trace.mark("vmm_exit");
        fail_point::reach("suspend.ended");
        let mut timing = trace.finish(Operation::Suspend, self.record.generation);
        timing.image_bytes_written = Some(figures.image_bytes_written);
        timing.memory_bytes_written = Some(figures.memory_bytes_written);
        timing.image_bytes_allocated = Some(figures.image_bytes_allocated);
        let note = Note {
            timing: Some(timing),
            ..Note::default()
        };
        self.transition_soon(Event::SuspendDone, note, |record| {
            record.image_generation = Some(record.generation);
            record.facts.image_unusable = None;
            record.vmm = None;
        });
        self.settle(None);
    }

    /// A suspend that was broken off on request, or failed.
    fn abandon_for(
        &mut self,
        interrupt: Option<Envelope>,
        error: &ControlError,
        trace: &Trace,
    ) -> Option<Envelope> {
        let cancelled = matches!(error, ControlError::Failed { kind, .. } if kind == "cancelled");
        let message = chain(error);
        match interrupt {
            Some(envelope) if cancelled && matches!(envelope.order, Order::Start) => {
                let start = StartKind::SuspendCancelled;
                fail_point::reach("suspend.cancelled");
                self.record.facts.last_start = Some(start.clone());
                let note = Note {
                    source: envelope.source(),
                    start: Some(start.clone()),
                    message: Some("a start broke the suspend off".to_owned()),
                    ..Note::default()
                };
                self.transition_soon(Event::SuspendAbandoned, note, |_| {});
                let previous_state = machine_api::MachineState::Suspending;
                let waited = (envelope.until == Until::Completed).then_some(start);
                let _ = envelope.reply.send(Ok(Granted {
                    previous_state,
                    start: waited,
                }));
                self.settle(Some("a start broke the suspend off"));
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
        let note = Note {
            timing: Some(timing),
            message: Some(message.clone()),
            ..Note::default()
        };
        self.transition_soon(Event::SuspendAbandoned, note, |_| {});
        self.settle(Some(&message));
    }
}

/// Asks for the suspend, again where one that was just broken off is not quite over.
async fn save(
    control: &Control,
    body: RequestBody,
    limit: Duration,
) -> Result<Reply, ControlError> {
    let patience = Instant::now() + BUSY_LIMIT;
    loop {
        match save_within(control, body.clone(), limit).await {
            Err(ControlError::Failed { kind, .. })
                if kind == "busy" && Instant::now() < patience =>
            {
                sleep(BUSY_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// Asks for the suspend and breaks it off at its deadline. What the VMM says to that counts: its image
/// may have been whole already, and then the guest is in it and nowhere else.
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

pub(super) async fn cancel(control: &Control) {
    let request = RequestBody::CancelSuspend;
    if let Err(error) = control
        .request("cancel the suspend", request, CANCEL_LIMIT)
        .await
    {
        tracing::warn!(%error, "cannot cancel a suspend");
    }
}

/// For a suspend whose reply was lost with an earlier supervisor.
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
