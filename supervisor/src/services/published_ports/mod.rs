//! Published ports: the supervisor listens on the host and carries each connection over vsock to the
//! guest's own loopback. The host's network configuration is not changed.
//!
//! `connection` carries one of them, and holds it while its machine is started.

mod connection;
mod exchange;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use machine_api::{MachineState, PublishedPort, Service};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::machine::request::LeaseCheck;
use crate::machine::{Handle, MachineError};
use crate::model::event;
use crate::model::guest_share::Telling;

/// Most connections of a service that names no bound.
const CONNECTIONS: usize = 10_000;
/// Wait before a port that could not be bound is tried again.
const REBIND: Duration = Duration::from_secs(2);
/// Wait after a failed accept, for instance when out of descriptors.
const REACCEPT: Duration = Duration::from_millis(100);

/// Publishes the ports of a machine until it is gone.
pub(super) async fn serve(handle: Handle) {
    let mut view = handle.watch();
    let mut services = Vec::new();
    let failures = Failures::default();
    // Dropped, and with it all connections, when this returns.
    let mut listeners = JoinSet::new();
    loop {
        let machine = view.borrow_and_update().clone();
        if machine.state == MachineState::Destroyed {
            return;
        }
        if machine.config.services != services {
            services = machine.config.services.clone();
            listeners.abort_all();
            edit_published(&handle, Vec::clear).await;
            listeners = listen(&handle, &services, &machine.published, &failures);
        }
        if view.changed().await.is_err() {
            return;
        }
    }
}

/// Connections that were not carried, in the supervisor's own log. A guest that refuses all of them, and
/// clients that try all the time, do not fill it. Clones count together.
#[derive(Debug, Clone)]
struct Failures {
    telling: Arc<Mutex<Telling>>,
}

impl Default for Failures {
    fn default() -> Self {
        let telling = Telling::of_refused_connections(Instant::now());
        Self {
            telling: Arc::new(Mutex::new(telling)),
        }
    }
}

impl Failures {
    fn tell(&self, machine_id: &str, error: &MachineError) {
        if let Some(untold) = self.count(Instant::now()) {
            tracing::info!(machine_id, %error, untold, "a connection was not carried");
        }
    }

    /// Counts one. How many were not told before it, if this one is.
    fn count(&self, now: Instant) -> Option<u64> {
        let mut telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        telling.next(now)
    }
}

/// Changes the list of addresses at which the machine's ports are published.
async fn edit_published(
    handle: &Handle,
    edit: impl FnOnce(&mut Vec<PublishedPort>) + Send + 'static,
) {
    let edited = handle.edit(LeaseCheck::Skip, |record| {
        edit(&mut record.facts.published);
        Ok(((), None))
    });
    // It fails only if the driver has ended.
    let _ = edited.await;
}

/// Listens on all ports of `services`. `before` lists the ports that were published until now.
fn listen(
    handle: &Handle,
    services: &[Service],
    before: &[PublishedPort],
    failures: &Failures,
) -> JoinSet<()> {
    let mut listeners = JoinSet::new();
    for service in services {
        let hard_limit = service
            .concurrency
            .as_ref()
            .and_then(|concurrency| concurrency.hard_limit);
        let most = hard_limit
            .and_then(|most| usize::try_from(most).ok())
            .unwrap_or(CONNECTIONS);
        let permits = Arc::new(Semaphore::new(most));
        for port in &service.ports {
            let address = port.address.as_deref().and_then(|text| text.parse().ok());
            let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let address = SocketAddr::new(address, port.port);
            let preferred = (port.port == 0)
                .then(|| earlier_address(before, address.ip(), service))
                .flatten();
            listeners.spawn(accept_all(
                handle.clone(),
                service.clone(),
                Addresses { address, preferred },
                permits.clone(),
                failures.clone(),
            ));
        }
    }
    listeners
}

/// The address that the host had chosen for a service, so that it can be used again.
fn earlier_address(before: &[PublishedPort], ip: IpAddr, service: &Service) -> Option<SocketAddr> {
    let of_service = |port: &&PublishedPort| port.internal_port == service.internal_port;
    let addresses = before.iter().filter(of_service);
    addresses
        .filter_map(|port| port.address.parse::<SocketAddr>().ok())
        .find(|address| address.ip() == ip)
}

/// Where a port is published.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    /// As configured; with port 0 the host chooses one.
    address: SocketAddr,
    /// Used instead if it can be bound.
    preferred: Option<SocketAddr>,
}

/// Accepts connections for ever, and carries each in a task of its own.
async fn accept_all(
    handle: Handle,
    service: Service,
    Addresses { address, preferred }: Addresses,
    permits: Arc<Semaphore>,
    failures: Failures,
) {
    let bound = match preferred {
        Some(preferred) => TcpListener::bind(preferred).await.ok(),
        None => None,
    };
    let listener = match bound {
        Some(listener) => listener,
        None => bind(&handle, address).await,
    };
    if let Ok(bound) = listener.local_addr() {
        handle.log().add_note(&format!("published on {bound}"));
        let port = PublishedPort {
            address: bound.to_string(),
            internal_port: service.internal_port,
        };
        edit_published(&handle, move |published| published.push(port)).await;
    }
    let mut connections = JoinSet::new();
    loop {
        // At the limit nothing is accepted: clients wait in the kernel's queue.
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((client, _)) => {
                // This one waits, and those behind it in the kernel's queue. Taken after it was accepted: a
                // port without clients must keep no permit from the machine's other ports.
                let Some(of_machine) = handle.connections().acquire().await else {
                    return;
                };
                let (handle, service) = (handle.clone(), service.clone());
                let failures = failures.clone();
                connections.spawn(async move {
                    if let Err(error) = connection::carry(&handle, &service, client).await {
                        failures.tell(handle.id(), &error);
                    }
                    drop((permit, of_machine));
                });
            }
            Err(error) => {
                tracing::warn!(%address, %error, "cannot accept a connection");
                sleep(REACCEPT).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Binds `address`. If that fails it warns once, and tries again until it succeeds.
async fn bind(handle: &Handle, address: SocketAddr) -> TcpListener {
    let mut warned = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !warned => {
                warned = true;
                let message = format!("port {address} cannot be published: {error}");
                let edited = handle.edit(LeaseCheck::Skip, |record| {
                    Ok(((), Some(event::warning(record.state, message))))
                });
                let _ = edited.await;
            }
            Err(_) => {}
        }
        sleep(REBIND).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_are_told_a_few_times_and_then_counted() {
        let failures = Failures::default();
        let begun = Instant::now();
        let told: Vec<u64> = (0..1_000).filter_map(|_| failures.count(begun)).collect();
        assert_eq!(told, [0; 5]);
        assert_eq!(failures.count(begun + Duration::from_secs(10)), Some(995));
    }
}
