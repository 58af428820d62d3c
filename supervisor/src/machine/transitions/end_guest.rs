//! How a stop, a restart and an update end the guest that runs, and remove the image of one that
//! does not.

use std::time::Duration;

use guest_protocol::Request as GuestRequest;
use tokio::time::{Instant, sleep, timeout};

use crate::error_chain::error_chain;
use crate::exhaustion;
use crate::guest::{GuestAddress, GuestError};
use crate::machine::driver::{Attended, Driver, Effect};
use crate::machine::error::MachineError;
use crate::machine::request::{Command, Request};
use crate::machine_folder;
use crate::model::graceful_stop::GracefulStop;
use crate::model::timing::Trace;

/// Deadline for guest-init to accept that it powers off.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// Wait before it is asked again when the supervisor is out of descriptors.
const ASK_PAUSE: Duration = Duration::from_millis(100);
/// How long a guest may take to power off once its main process has ended.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(10);

impl Driver {
    /// How the transition under way was told to end the guest, by this supervisor or an earlier one.
    pub(super) fn planned_stop(&self) -> Option<GracefulStop> {
        match self.record.facts.ending {
            Some(end) => end.into(),
            None => GracefulStop::configured(&self.record.config),
        }
    }

    /// Asks the guest to power off, waits for the end of its VMM, and kills it after a deadline;
    /// without `stop` it is killed at once. Returns a request that interrupts this. If that is a
    /// stop, the guest goes on powering off, and the stop asks it again with its own limits.
    pub(super) async fn end_guest(
        &mut self,
        stop: Option<GracefulStop>,
        trace: &mut Trace,
    ) -> Option<Request> {
        let vmm = self.vmm.clone()?;
        // A VMM that has ended meanwhile, such as by a suspend that was faster, cannot be asked.
        let runs = timeout(Duration::ZERO, vmm.exited()).await.is_err();
        if let Some(stop) = stop.filter(|_| runs) {
            let address = self.guest_address();
            let mut work: Effect<'_, Result<(), String>> = Box::pin(async move {
                ask_to_power_off(&address, stop).await?;
                let limit = stop.timeout + POWER_OFF_LIMIT;
                let ended = timeout(limit, vmm.exited()).await;
                ended
                    .map(drop)
                    .map_err(|_| format!("it still runs after {} s", limit.as_secs()))
            });
            match self.attend(&mut work).await {
                Attended::Done(Ok(())) => {}
                Attended::Done(Err(why)) => {
                    let note = format!("the guest did not power off ({why}); it is killed");
                    self.log.add_note(&note);
                }
                Attended::Interrupted(request) => {
                    if matches!(request.command, Command::Destroy { .. }) {
                        self.kill_vmm().await;
                    }
                    return Some(request);
                }
            }
            trace.mark("power_off");
        }
        self.add_main_exit(true).await;
        self.kill_vmm().await;
        trace.mark("vmm_exit");
        None
    }

    /// Removes the image, so that it is never resumed.
    pub(super) fn remove_image(&mut self) -> Result<(), MachineError> {
        self.record.image_generation = None;
        self.record.facts.image_unusable = None;
        self.record.facts.cold_reason = None;
        machine_folder::remove_image(&self.dir).map_err(|source| MachineError::Files {
            what: "remove the image",
            source,
        })
    }
}

/// Asks the guest to power off. When the supervisor is out of descriptors it tries again, for as
/// long as the main process would have had to end.
async fn ask_to_power_off(address: &GuestAddress, stop: GracefulStop) -> Result<(), String> {
    let request = GuestRequest::PowerOff {
        signal: stop.signal,
        timeout_ms: u64::try_from(stop.timeout.as_millis()).unwrap_or(u64::MAX),
    };
    let deadline = Instant::now() + stop.timeout;
    loop {
        match timeout(ASK_LIMIT, address.execute(request.clone())).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(GuestError::Dial(error)))
                if exhaustion::hint(&error).is_some() && Instant::now() < deadline =>
            {
                sleep(ASK_PAUSE).await;
            }
            Ok(Err(error)) => return Err(error_chain(&error)),
            Err(_) => return Err(format!("no answer within {} s", ASK_LIMIT.as_secs())),
        }
    }
}
