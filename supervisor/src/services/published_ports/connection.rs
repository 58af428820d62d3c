//! One connection to a published port: held until the guest is ready, then carried both ways.

use std::time::Duration;

use guest_protocol::{RefusalKind, Request};
use machine_api::{MachineState, Service};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::clock;
use crate::guest::{GuestError, GuestStream};
use crate::machine::handle::LiveGuest;
use crate::machine::request::{Command, LeaseCheck, Until};
use crate::machine::{Handle, MachineError};
use crate::model::machine_checks;
use crate::model::record::MachineRecord;
use crate::model::restart_policy::Autostart;
use crate::services::published_ports::exchange::exchange;

/// How long a connection is held while its machine starts.
const HOLD: Duration = Duration::from_secs(180);
/// How long the guest may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a guest that has just started may take to listen on its port, and the wait between
/// attempts meanwhile.
const LISTEN_LIMIT: Duration = Duration::from_secs(15);
const LISTEN_PAUSE: Duration = Duration::from_millis(100);
/// How long after a connection broke the reason may be found in the machine's state: it was stopped or
/// suspended.
const STATE_LIMIT: Duration = Duration::from_secs(1);

/// Carries `client`; closes it if no guest can be reached.
pub(super) async fn carry(
    handle: &Handle,
    service: &Service,
    client: TcpStream,
) -> Result<(), MachineError> {
    if handle.view().cordoned {
        return Ok(());
    }
    let _user = handle.activity().add_user();
    if let Some(guest) = reach(handle, service).await? {
        exchange(client, guest).await;
    }
    Ok(())
}

/// How an attempt to reach the guest ended.
enum Reached {
    Guest(GuestStream),
    /// It did not answer in time.
    Silent,
    /// The machine was stopped or suspended meanwhile, or has another guest now.
    Left,
}

/// A stream to the guest's port; none if the guest does not answer, or the machine does not start.
async fn reach(handle: &Handle, service: &Service) -> Result<Option<GuestStream>, MachineError> {
    let autostart = service.autostart.unwrap_or(false);
    let deadline = Instant::now() + HOLD;
    let mut woken = false;
    loop {
        woken |= handle.live().is_err();
        let Some(live) = ready(handle, autostart, deadline).await? else {
            return Ok(None);
        };
        match open(handle, service.internal_port, &live, woken).await? {
            Reached::Guest(stream) => return Ok(Some(stream)),
            Reached::Silent => return Ok(None),
            // That guest is gone, but nothing of the client is lost yet: it is held again.
            Reached::Left => woken = true,
        }
    }
}

/// Opens the port in the guest `live`, for as long as the machine has that guest. A guest that was
/// `woken` may not listen yet.
async fn open(
    handle: &Handle,
    port: u16,
    live: &LiveGuest,
    woken: bool,
) -> Result<Reached, MachineError> {
    let generation = live.address.generation;
    let mut changes = handle.changes();
    let deadline = Instant::now() + LISTEN_LIMIT;
    loop {
        let opened = timeout(ANSWER_LIMIT, live.address.open(Request::Forward { port }));
        let opened = tokio::select! {
            biased;
            opened = opened => opened,
            () = changes.left_generation(generation) => return Ok(Reached::Left),
        };
        match opened {
            Ok(Ok(stream)) => return Ok(Reached::Guest(stream)),
            Ok(Err(GuestError::Refused(refusal)))
                if woken && refusal.kind == RefusalKind::NotFound && Instant::now() < deadline =>
            {
                sleep(LISTEN_PAUSE).await;
            }
            // The end of the guest may be noticed here before the machine's state shows it.
            Ok(Err(GuestError::Dial(_) | GuestError::Closed { .. }))
                if timeout(STATE_LIMIT, changes.left_generation(generation))
                    .await
                    .is_ok() =>
            {
                return Ok(Reached::Left);
            }
            Ok(Err(source)) => {
                let id = handle.id().to_owned();
                return Err(MachineError::Guest {
                    id,
                    what: "take the connection",
                    source,
                });
            }
            Err(_) => return Ok(Reached::Silent),
        }
    }
}

/// The machine's guest, after a start if that is needed and allowed.
async fn ready(
    handle: &Handle,
    autostart: bool,
    deadline: Instant,
) -> Result<Option<LiveGuest>, MachineError> {
    let mut changes = handle.changes();
    loop {
        let changed = changes.next();
        let machine = handle.view();
        let left = deadline.saturating_duration_since(Instant::now());
        if let Ok(live) = handle.live() {
            if machine_checks::allow_connections(&machine) {
                return Ok(Some(live));
            }
            if !matches!(timeout(left, changed).await, Ok(true)) {
                return Ok(None);
            }
            continue;
        }
        let state = machine.state;
        let wakes = match state {
            MachineState::Suspended
            | MachineState::Suspending
            | MachineState::Stopped
            | MachineState::Created
            | MachineState::Failed => autostart,
            MachineState::Destroyed | MachineState::Destroying => return Ok(None),
            MachineState::Starting
            | MachineState::Started
            | MachineState::Stopping
            | MachineState::Restarting
            | MachineState::Updating => false,
        };
        if wakes {
            let allowed = |record: &MachineRecord| Ok(record.facts.autostart(clock::realtime_ms()));
            match handle.read(LeaseCheck::Skip, allowed).await? {
                Autostart::Now => {}
                Autostart::Never => return Ok(None),
                Autostart::After(wait) => {
                    // Somebody else may start it meanwhile.
                    let changed = timeout(wait.min(left), changed).await;
                    if wait >= left || changed == Ok(false) {
                        return Ok(None);
                    }
                    continue;
                }
            }
        }
        if wakes {
            let start =
                handle.request_by_supervisor(Command::Start { cold: false }, Until::Completed);
            match timeout(left, start).await {
                // Another transition came in between; its end is awaited below.
                Ok(Ok(_) | Err(MachineError::Refused { .. })) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(None),
            }
        } else if matches!(
            state,
            MachineState::Suspended
                | MachineState::Stopped
                | MachineState::Created
                | MachineState::Failed
        ) || !matches!(timeout(left, changed).await, Ok(true))
        {
            return Ok(None);
        }
    }
}
