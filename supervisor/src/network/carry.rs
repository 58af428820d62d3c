//! One connection of a published port: held until the guest is ready, then carried both ways.

use std::time::Duration;

use guest_protocol::{RefusalKind, Request};
use machine_api::{Machine, MachineState, Service};
use tokio::io::{AsyncWriteExt, copy};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::checks::{self, PASSING, READINESS};
use crate::guest::{GuestError, GuestStream};
use crate::machine::handle::{Live, Order};
use crate::machine::{Handle, MachineError, Until};

/// How long a connection is held for a machine that starts.
const HOLD: Duration = Duration::from_secs(180);
/// How long the guest may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a guest that has just started may take to listen on its port, and how often it is
/// asked meanwhile.
const LISTEN: Duration = Duration::from_secs(15);
const LISTEN_PAUSE: Duration = Duration::from_millis(100);
/// How long after a connection broke the machine may be found to have been put to rest.
const END_TOLD: Duration = Duration::from_secs(1);

/// Carries `client`. A connection that leads nowhere is closed.
pub(super) async fn carry(handle: &Handle, service: &Service, client: TcpStream) {
    if handle.view().cordoned {
        return;
    }
    let _busy = handle.activity().begin();
    match reach(handle, service).await {
        Ok(Some(guest)) => exchange(client, guest).await,
        Ok(None) => {}
        Err(error) => {
            tracing::info!(machine_id = handle.id(), %error, "a connection was not carried");
        }
    }
}

/// How an attempt to reach the guest ended.
enum Reached {
    Guest(GuestStream),
    /// It did not answer in time.
    Silent,
    /// The machine was put to rest meanwhile, or its guest is another one.
    Left,
}

/// The guest's end; none where the guest has nobody on that port, or may not be started.
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
            // What it was asked is lost, the client has lost nothing yet: it is held again.
            Reached::Left => woken = true,
        }
    }
}

/// Opens the port in that guest, for as long as it is the machine's. One that was `woken` may
/// not listen yet.
async fn open(
    handle: &Handle,
    port: u16,
    live: &Live,
    woken: bool,
) -> Result<Reached, MachineError> {
    let generation = live.address.generation;
    let mut changes = handle.changes();
    let patience = Instant::now() + LISTEN;
    loop {
        let opened = timeout(ANSWER, live.address.open(Request::Forward { port }));
        let opened = tokio::select! {
            biased;
            opened = opened => opened,
            () = changes.left(generation) => return Ok(Reached::Left),
        };
        match opened {
            Ok(Ok(stream)) => return Ok(Reached::Guest(stream)),
            Ok(Err(GuestError::Refused(refusal)))
                if woken && refusal.kind == RefusalKind::NotFound && Instant::now() < patience =>
            {
                sleep(LISTEN_PAUSE).await;
            }
            // Cut off by its end, which may be seen here before it is told.
            Ok(Err(GuestError::Dial(_) | GuestError::Closed { .. }))
                if timeout(END_TOLD, changes.left(generation)).await.is_ok() =>
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

/// Access to the guest, after a start if need be.
async fn ready(
    handle: &Handle,
    autostart: bool,
    deadline: Instant,
) -> Result<Option<Live>, MachineError> {
    let mut changes = handle.changes();
    loop {
        let changed = changes.next();
        let machine = handle.view();
        let left = deadline.saturating_duration_since(Instant::now());
        if let Ok(live) = handle.live() {
            if passes(&machine) {
                return Ok(Some(live));
            }
            if !matches!(timeout(left, changed).await, Ok(true)) {
                return Ok(None);
            }
            continue;
        }
        let state = machine.state;
        let wakes = match state {
            MachineState::Suspended | MachineState::Suspending => autostart,
            MachineState::Stopped | MachineState::Created => autostart,
            MachineState::Destroyed | MachineState::Destroying | MachineState::Failed => {
                return Ok(None);
            }
            MachineState::Starting
            | MachineState::Started
            | MachineState::Stopping
            | MachineState::Restarting
            | MachineState::Updating => false,
        };
        if wakes {
            let start = handle.request_by_supervisor(Order::Start, Until::Completed);
            match timeout(left, start).await {
                // Somebody else's transition came in between: its end is awaited below.
                Ok(Ok(_) | Err(MachineError::Refused { .. })) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(None),
            }
        } else if matches!(
            state,
            MachineState::Suspended | MachineState::Stopped | MachineState::Created
        ) || !matches!(timeout(left, changed).await, Ok(true))
        {
            return Ok(None);
        }
    }
}

/// Whether all readiness checks have succeeded, and all that services have of their own.
fn passes(machine: &Machine) -> bool {
    let decisive = |name: &str| match machine.config.checks.get(name) {
        Some(check) => check.purpose.as_deref() == Some(READINESS),
        None => true,
    };
    checks::all(&machine.config)
        .keys()
        .filter(|name| decisive(name))
        .all(|name| {
            machine
                .checks
                .iter()
                .any(|one| one.name == *name && one.status == PASSING)
        })
}

/// Copies both ways; an end of one direction is passed on and does not end the other.
async fn exchange(mut client: TcpStream, guest: GuestStream) {
    // Small writes matter more to whoever waits for an answer than full packets.
    let _ = client.set_nodelay(true);
    let (mut from_guest, mut to_guest, early) = guest.into_raw();
    let (mut from_client, mut to_client) = client.split();
    let up = async {
        let copied = copy(&mut from_client, &mut to_guest).await;
        let _ = to_guest.shutdown().await;
        copied.map(drop)
    };
    let down = async {
        to_client.write_all(&early).await?;
        let copied = copy(&mut from_guest, &mut to_client).await;
        let _ = to_client.shutdown().await;
        copied.map(drop)
    };
    // An error of either direction means that the whole connection is over.
    let _ = tokio::try_join!(up, down);
}
