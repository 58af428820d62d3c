//! From a VMM that was launched or is adopted to a guest that is ready.

use std::pin::pin;
use std::time::Duration;

use guest_protocol::{GuestStatus, Request};
use machine_api::Attempt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::guest::{GuestAddress, GuestError, GuestStream};
use crate::machine::readiness::{AttemptFuture, NotReady, StatusReply, ask_status, repeat};
use crate::machine::session::open_monitor;
use crate::model::settings::ReadinessLimits;
use crate::model::timing::Trace;
use crate::paths::MachineDir;
use crate::vmm_process::{Control, ControlError, VmmExit, VmmProcess};
use crate::{clock, exhaustion};

/// Time that guest-init has to start the main process.
const LAUNCH_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait for the VMM's report of a reset that the guest must have acknowledged.
const RESET_REPORT_LIMIT: Duration = Duration::from_millis(50);
/// How long a VMM that closed its control connection may take to end.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// How long a start holds its permit. One that takes longer is slow or deaf rather than busy, and
/// must not block those that wait for a permit.
const PERMIT_LIMIT: Duration = Duration::from_secs(5);

/// Does `work` and holds `permit` meanwhile, but at most for [`PERMIT_LIMIT`].
pub(super) async fn with_permit<T>(
    permit: Option<OwnedSemaphorePermit>,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    if let Ok(done) = timeout(PERMIT_LIMIT, &mut work).await {
        return done;
    }
    drop(permit);
    work.await
}

/// Why a launched VMM did not become a started machine.
#[derive(Debug, thiserror::Error)]
pub(super) enum BringUpError {
    /// The VMM ended.
    #[error("{}", .0.in_words())]
    Ended(VmmExit),
    /// The VMM's control connection failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The guest is not ready in time.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// guest-init could not start the main process.
    #[error("the main process could not be started")]
    Main(#[source] GuestError),
    /// guest-init did not answer the call that starts the main process.
    #[error("guest-init did not start the main process within {} s", LAUNCH_LIMIT.as_secs())]
    MainDeadline,
}

impl BringUpError {
    /// Whether VMM and guest may be fine, and it is this supervisor that cannot use them: it is out of
    /// something, or of another release than they are.
    pub(super) fn is_ours(&self) -> bool {
        match self {
            Self::NotReady(error) if error.is_of_another_version => true,
            Self::Control(ControlError::Stranger { version, .. }) => !vmm_control::speaks(*version),
            Self::NotReady(error) => error.is_exhaustion,
            error => exhaustion::is_exhaustion(error),
        }
    }
}

/// What is needed to make a VMM's guest ready.
#[derive(Debug)]
pub(super) struct BringUp {
    pub(super) machine_id: String,
    pub(super) dir: MachineDir,
    pub(super) vmm: VmmProcess,
    pub(super) address: GuestAddress,
    pub(super) limits: ReadinessLimits,
    pub(super) monitor_first: bool,
    pub(super) resumed: bool,
    pub(super) launch: Option<Request>,
    /// Just before the process was created.
    pub(super) spawned_ns: u64,
}

/// A guest that is ready.
#[derive(Debug)]
pub(super) struct ReadyGuest {
    pub(super) control: Control,
    pub(super) monitor: Option<GuestStream>,
    pub(super) status: GuestStatus,
}

impl BringUp {
    /// Waits for VMM and guest. `trace` and `attempts` are filled even if that fails.
    pub(super) async fn run(
        &self,
        trace: &mut Trace,
        attempts: &mut Vec<Attempt>,
    ) -> Result<ReadyGuest, BringUpError> {
        let ready = self.make_ready(trace, attempts);
        let result = tokio::select! {
            biased;
            exit = self.vmm.exited() => Err(BringUpError::Ended(exit)),
            result = ready => result,
        };
        match result {
            // A VMM that dies closes its sockets a moment before its process ends.
            Err(error @ BringUpError::Control(_)) => {
                match timeout(EXIT_LIMIT, self.vmm.exited()).await {
                    Ok(exit) => Err(BringUpError::Ended(exit)),
                    Err(_) => Err(error),
                }
            }
            result => result,
        }
    }

    async fn make_ready(
        &self,
        trace: &mut Trace,
        attempts: &mut Vec<Attempt>,
    ) -> Result<ReadyGuest, BringUpError> {
        let (socket, limit) = (self.dir.control_socket(), self.limits.total);
        let generation = self.address.generation;
        let control = Control::connect(&socket, &self.machine_id, generation, limit).await?;
        let phases = control.running(limit).await?;
        if let Some(first) = phases.first() {
            trace.add("spawn", self.spawned_ns, first.start_ns);
        }
        trace.add_vmm(&phases);
        let mut monitor = None;
        if self.monitor_first {
            let begun_ns = clock::monotonic_ns();
            let open = || -> AttemptFuture<GuestStream> {
                let address = self.address.clone();
                Box::pin(async move {
                    let stream = open_monitor(&address).await?;
                    let local_port = stream.local_port();
                    Ok((stream, local_port))
                })
            };
            monitor = Some(repeat(&self.limits, "monitor", attempts, open).await?.value);
            trace.add("monitor_reopened", begun_ns, clock::monotonic_ns());
        }
        let status = self.check(&control, trace, attempts).await?;
        let address = self.address.clone().speaking(status.protocol);
        if let Some(launch) = &self.launch {
            let launched = timeout(LAUNCH_LIMIT, address.execute(launch.clone())).await;
            launched
                .map_err(|_| BringUpError::MainDeadline)?
                .map_err(BringUpError::Main)?;
            trace.mark("launch_main");
        }
        if !self.monitor_first {
            // If this fails the session tries again; a started machine does not depend on the monitor.
            let opened = timeout(self.limits.attempt, open_monitor(&address)).await;
            monitor = opened.ok().and_then(Result::ok);
            trace.mark("monitor_reopened");
        }
        Ok(ReadyGuest {
            control,
            monitor,
            status,
        })
    }

    /// The readiness check and its phases.
    async fn check(
        &self,
        control: &Control,
        trace: &mut Trace,
        attempts: &mut Vec<Attempt>,
    ) -> Result<GuestStatus, BringUpError> {
        let before_ns = trace.last_ns();
        let first_ns = clock::monotonic_ns();
        let ask = || -> AttemptFuture<StatusReply> {
            let address = self.address.clone();
            Box::pin(async move {
                let reply = ask_status(&address).await?;
                let local_port = reply.local_port;
                Ok((reply, local_port))
            })
        };
        let success = repeat(&self.limits, "status", attempts, ask).await?;
        let done_ns = clock::monotonic_ns();
        let mut connecting_ns = success.attempt_ns;
        if self.resumed {
            let reported = control
                .wait_for("report the reset", RESET_REPORT_LIMIT, |reports| {
                    reports.reset_acknowledged_ns
                })
                .await;
            if let Ok(acknowledged_ns) = reported {
                trace.add("reset_acknowledged", before_ns, acknowledged_ns);
                connecting_ns = connecting_ns.max(acknowledged_ns);
            }
            if success.failed > 0 {
                trace.add("failed_attempts", first_ns, success.attempt_ns);
            }
        } else if success.failed > 0 {
            trace.add("guest_boot", before_ns, success.attempt_ns);
        }
        trace.add("connect", connecting_ns, success.value.connected_ns);
        trace.add("first_status", success.value.connected_ns, done_ns);
        Ok(success.value.status)
    }
}
