//! Updating: the machine gets a new version, and boots with it unless told otherwise.

use machine_api::{EventType, ImageRef};

use crate::error_chain::error_chain;
use crate::machine::driver::Driver;
use crate::machine::error::MachineError;
use crate::machine::request::{Command, Request, Update};
use crate::model::event::EventDetails;
use crate::model::graceful_stop::GracefulStop;
use crate::model::record::{LeaseFact, LeaseWanted};
use crate::model::state::Event;
use crate::model::timing::Trace;
use crate::{clock, fail_point, ids};

impl Driver {
    /// Gives the machine a new version.
    pub(in crate::machine) async fn update(
        &mut self,
        mut trace: Trace,
        request: Request,
    ) -> Option<Request> {
        let Command::Update(update) = &request.command else {
            return None;
        };
        let (checked, skip_launch) = (self.check_update(update), update.skip_launch);
        let (config, name) = (update.config.clone(), update.name.clone());
        let (lease, cordon) = (update.lease.clone(), update.cordon);
        let (image, lease) = match checked.and_then(|image| Ok((image, self.lease(lease)?))) {
            Ok(checked) => checked,
            Err(error) => {
                request.refuse(error);
                return None;
            }
        };
        // The guest that ends was made by the configuration that ends.
        let stop = GracefulStop::configured(&self.record.config);
        let previous = self.record.state;
        let details = EventDetails::caused_by(request.source());
        let begun = self.transition(Event::UpdateBegun, details, |record| {
            record.facts.ending = Some(stop.into());
            record.facts.lease = lease.or(record.facts.lease.take());
            record.facts.cordoned |= cordon;
            record.config = config;
            record.image_ref = image;
            record.name = name.unwrap_or_else(|| record.name.clone());
            record.instance_id = ids::new_ulid();
            record.facts.skip_launch = skip_launch;
            record.facts.restarts = 0;
            record.facts.restart_due = false;
            record.facts.image_unusable = Some("configuration changed".to_owned());
        });
        if let Err(error) = begun.await {
            request.refuse(error);
            return None;
        }
        self.add_launch();
        fail_point::reach("update.stored");
        self.admitted(Some(request), previous);
        self.carry_out_update(&mut trace).await
    }

    /// From `updating` to `stopped` or `started`.
    pub(super) async fn carry_out_update(&mut self, trace: &mut Trace) -> Option<Request> {
        if let Some(request) = self.end_guest(self.planned_stop(), trace).await {
            return Some(request);
        }
        if let Err(error) = self.remove_image() {
            self.add_event(EventType::Warning, error_chain(&error));
        }
        fail_point::reach("update.ended");
        if !self.record.facts.skip_launch {
            return Box::pin(self.start(Trace::begin(), None)).await;
        }
        let details = EventDetails {
            kind: Some(EventType::Update),
            ..EventDetails::default()
        };
        self.transition_then_store(Event::Halted, details, |record| {
            record.vmm = None;
            record.facts.ending = None;
        });
        self.answer_waiters(None);
        None
    }

    /// The lease that is wanted, as it will be.
    fn lease(&self, wanted: Option<LeaseWanted>) -> Result<Option<LeaseFact>, MachineError> {
        let Some(wanted) = wanted else {
            return Ok(None);
        };
        let mut record = self.record.clone();
        let lease = record.take_lease(wanted, clock::realtime_ms()).cloned();
        lease
            .map(Some)
            .map_err(|refusal| MachineError::of_lease(&self.record.id, refusal))
    }

    fn check_update(&self, update: &Update) -> Result<ImageRef, MachineError> {
        if let Some(expected) = &update.current_version
            && *expected != self.record.instance_id
        {
            return Err(MachineError::OtherVersion {
                id: self.record.id.clone(),
                found: self.record.instance_id.clone(),
                expected: expected.clone(),
            });
        }
        Ok(self.context.images.find(&update.config.image)?.reference)
    }
}
