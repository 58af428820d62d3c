//! Stopping: the guest powers off or is killed, and an image is removed.

use machine_api::Operation;

use crate::error_chain::error_chain;
use crate::fail_point;
use crate::machine::driver::Driver;
use crate::machine::request::Request;
use crate::model::event::EventDetails;
use crate::model::graceful_stop::GracefulStop;
use crate::model::state::Event;
use crate::model::timing::Trace;

impl Driver {
    /// Stops a machine that has a guest or an image.
    pub(in crate::machine) async fn stop(
        &mut self,
        stop: GracefulStop,
        mut trace: Trace,
        request: Option<Request>,
    ) -> Option<Request> {
        let begun_from = request.as_ref().and_then(|request| request.begun_from);
        let previous = begun_from.unwrap_or(self.record.state);
        if begun_from.is_none() {
            let details = EventDetails::caused_by(Request::source_of(request.as_ref()));
            let begun = self.transition(Event::StopBegun, details, |record| {
                record.cancel_restart();
                record.facts.ending = Some(Some(stop).into());
            });
            if let Err(error) = begun.await {
                if let Some(request) = request {
                    request.refuse(error);
                }
                return None;
            }
        }
        fail_point::reach("stop.stored");
        self.admitted(request, previous);
        trace.mark("admission");
        self.carry_out_stop(Some(stop), trace).await
    }

    /// From `stopping` to `stopped`.
    pub(super) async fn carry_out_stop(
        &mut self,
        stop: Option<GracefulStop>,
        mut trace: Trace,
    ) -> Option<Request> {
        if let Some(request) = self.end_guest(stop, &mut trace).await {
            return Some(request);
        }
        fail_point::reach("stop.ended");
        let message = self.remove_image().err().map(|error| error_chain(&error));
        fail_point::reach("stop.dropped");
        let timing = trace.finish(Operation::Stop, self.record.generation);
        let details = EventDetails {
            timing: Some(timing),
            message,
            ..EventDetails::default()
        };
        self.transition_then_store(Event::Halted, details, |record| {
            record.vmm = None;
            record.facts.ending = None;
            record.facts.destroy_due = record.config.auto_destroy;
        });
        self.answer_waiters(None);
        self.destroy_if_due("stop.halted").await;
        None
    }
}
