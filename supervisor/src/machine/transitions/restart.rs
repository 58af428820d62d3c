//! Restarting: a stop and a cold boot, as one transition.

use machine_api::EventType;

use crate::error_chain::error_chain;
use crate::fail_point;
use crate::machine::driver::Driver;
use crate::machine::request::Request;
use crate::model::event::EventDetails;
use crate::model::graceful_stop::GracefulStop;
use crate::model::state::{Event, State};
use crate::model::timing::Trace;

impl Driver {
    /// Restarts a machine; starts one that has neither guest nor image. Without `stop` the guest is
    /// killed at once.
    pub(in crate::machine) async fn restart(
        &mut self,
        stop: Option<GracefulStop>,
        mut trace: Trace,
        request: Request,
    ) -> Option<Request> {
        if !matches!(self.record.state, State::Started | State::Suspended) {
            return self.start(trace, Some(request)).await;
        }
        let previous = self.record.state;
        let details = EventDetails::caused_by(request.source());
        let begun = self.transition(Event::RestartBegun, details, |record| {
            record.facts.restarts = 0;
            record.facts.ending = Some(stop.into());
        });
        if let Err(error) = begun.await {
            request.refuse(error);
            return None;
        }
        fail_point::reach("restart.stored");
        self.admitted(Some(request), previous);
        self.carry_out_restart(stop, &mut trace).await
    }

    /// From `restarting` to `started`.
    pub(super) async fn carry_out_restart(
        &mut self,
        stop: Option<GracefulStop>,
        trace: &mut Trace,
    ) -> Option<Request> {
        if let Some(request) = self.end_guest(stop, trace).await {
            return Some(request);
        }
        if let Err(error) = self.remove_image() {
            self.add_event(EventType::Warning, error_chain(&error));
        }
        fail_point::reach("restart.ended");
        Box::pin(self.start(Trace::begin(), None)).await
    }
}
