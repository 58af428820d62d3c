//! Destroying: the VMM is killed and the machine's files are removed. Its row is kept for a while.

use crate::error_chain::error_chain;
use crate::fail_point;
use crate::machine::driver::Driver;
use crate::machine::error::MachineError;
use crate::machine::request::Request;
use crate::machine_folder::remove_folder;
use crate::model::event::EventDetails;
use crate::model::state::{Event, State};

impl Driver {
    /// Destroys the machine. Waits for nothing but files; what fails is retried later.
    pub(in crate::machine) async fn destroy(&mut self, request: Option<Request>) {
        let begun_from = request.as_ref().and_then(|request| request.begun_from);
        let previous = begun_from.unwrap_or(self.record.state);
        if self.record.state != State::Destroying {
            let details = EventDetails::caused_by(Request::source_of(request.as_ref()));
            if let Err(error) = self.transition(Event::DestroyBegun, details, |_| {}).await {
                if let Some(request) = request {
                    request.refuse(error);
                }
                return;
            }
        }
        fail_point::reach("destroy.stored");
        // Answered when everything is removed, or when that has to be retried.
        self.admitted(request, previous);
        self.kill_vmm().await;
        self.log.close();
        let removed = remove_folder(&self.dir).map_err(|source| MachineError::Files {
            what: "remove the machine's files",
            source,
        });
        fail_point::reach("destroy.removed");
        let destroyed = match removed {
            Ok(()) => {
                self.transition(Event::DestroyDone, EventDetails::default(), |record| {
                    record.vmm = None;
                    record.image_generation = None;
                })
                .await
            }
            Err(error) => Err(error),
        };
        match destroyed {
            Ok(()) => self.answer_waiters(None),
            Err(error) => {
                let message = format!("{}; it is tried again", error_chain(&error));
                tracing::error!(
                    machine_id = self.record.id,
                    error = message,
                    "cannot finish a destroy"
                );
                self.warn_once(&message);
                self.answer_waiters(Some(&message));
            }
        }
    }

    /// Destroys a machine that has ended and whose configuration says that it is removed then.
    pub(in crate::machine) async fn destroy_if_due(&mut self, step: &str) {
        if self.is_destroy_due() {
            self.reach_when_stored(step).await;
            self.destroy(None).await;
        }
    }

    pub(in crate::machine) fn is_destroy_due(&self) -> bool {
        self.record.facts.destroy_due && self.record.state == State::Stopped
    }
}
