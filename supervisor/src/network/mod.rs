//! Published ports: the supervisor listens on the host and carries each connection to the guest's
//! own loopback, over vsock. No network of the host is touched.
//!
//! A connection to a machine that sleeps is held while the machine is started; a machine that is
//! idle is stopped or suspended, if its services say so. What a driver decides is not decided here.

mod activity;
mod carry;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use machine_api::{EventType, Machine, MachineState, PublishedPort, Service};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

pub(crate) use activity::{Activity, Busy};

use crate::duration;
use crate::machine::handle::Order;
use crate::machine::{Handle, Until};

/// Idle time of services that name none.
const IDLE: Duration = Duration::from_secs(300);
/// Connections of a service that names no bound.
const CONNECTIONS: usize = 10_000;
/// Wait before a port that could not be had is tried again.
const REBIND: Duration = Duration::from_secs(2);
/// Wait after a failed accept, such as for want of descriptors.
const REACCEPT: Duration = Duration::from_millis(100);

/// Publishes the ports of a machine, and lets it sleep when idle, until it is gone.
pub(crate) async fn serve(handle: Handle) {
    let mut view = handle.watch();
    let mut activity = handle.activity().watch();
    let mut services = Vec::new();
    let mut listeners = JoinSet::new();
    loop {
        let machine = view.borrow_and_update().clone();
        if machine.state == MachineState::Destroyed {
            return;
        }
        if machine.config.services != services {
            services = machine.config.services.clone();
            listeners.abort_all();
            show_published(&handle, Vec::clear).await;
            listeners = listen(&handle, &services, &machine.published);
        }
        let idle_since = activity.borrow_and_update().idle_since();
        let rest = idle_since.and_then(|since| Rest::of(&machine, since));
        tokio::select! {
            changed = view.changed() => if changed.is_err() {
                listeners.abort_all();
                return;
            },
            _ = activity.changed() => {}
            order = due(rest) => {
                handle.log().add_note("idle; the machine is put to rest");
                // A refusal means that somebody else was quicker.
                if let Err(error) = handle.request_by_supervisor(order, Until::Completed).await {
                    tracing::info!(machine_id = handle.id(), %error, "idle machine not put to rest");
                    sleep(REBIND).await;
                }
            }
        }
    }
}

/// When an idle machine is put to rest, and how.
struct Rest {
    at: Instant,
    order: Order,
}

impl Rest {
    fn of(machine: &Machine, idle_since: Instant) -> Option<Self> {
        if machine.state != MachineState::Started {
            return None;
        }
        let resting =
            |service: &&Service| matches!(service.autostop.as_deref(), Some("stop" | "suspend"));
        let services = || machine.config.services.iter().filter(resting);
        let idle = |service: &Service| {
            let text = service.idle_timeout.as_deref();
            text.and_then(|text| duration::parse(text).ok())
                .unwrap_or(IDLE)
        };
        let longest = services().map(idle).max()?;
        let stop = services().any(|service| service.autostop.as_deref() == Some("stop"));
        let config = machine.config.stop_config.as_ref();
        let order = if stop {
            Order::Stop(crate::machine::config::stop_order(None, None, config).ok()?)
        } else {
            Order::Suspend
        };
        Some(Self {
            at: idle_since + longest,
            order,
        })
    }
}

async fn due(rest: Option<Rest>) -> Order {
    match rest {
        Some(rest) => {
            sleep_until(rest.at).await;
            rest.order
        }
        None => std::future::pending().await,
    }
}

/// Shows where ports are published.
async fn show_published(
    handle: &Handle,
    edit: impl FnOnce(&mut Vec<PublishedPort>) + Send + 'static,
) {
    let edit = Order::Edit(Box::new(|record| {
        edit(&mut record.facts.published);
        Ok(None)
    }));
    // It fails only where there is no driver any more.
    let _ = handle.request_by_supervisor(edit, Until::Admitted).await;
}

/// `before` is where ports were published until now.
fn listen(handle: &Handle, services: &[Service], before: &[PublishedPort]) -> JoinSet<()> {
    let mut listeners = JoinSet::new();
    for service in services {
        let bounds = service
            .concurrency
            .as_ref()
            .and_then(|bounds| bounds.hard_limit);
        let bound = bounds
            .and_then(|most| usize::try_from(most).ok())
            .unwrap_or(CONNECTIONS);
        let room = Arc::new(Semaphore::new(bound));
        for port in &service.ports {
            let address = port.address.as_deref().and_then(|text| text.parse().ok());
            let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let address = SocketAddr::new(address, port.port);
            let wanted = (port.port == 0).then(|| earlier(before, address.ip(), service));
            let address = (address, wanted.flatten());
            let (handle, service, room) = (handle.clone(), service.clone(), room.clone());
            listeners.spawn(accept_all(handle, service, address, room));
        }
    }
    listeners
}

/// Where the host had chosen the port, so that it can choose the same one again.
fn earlier(before: &[PublishedPort], ip: IpAddr, service: &Service) -> Option<SocketAddr> {
    let of_service = |port: &&PublishedPort| port.internal_port == service.internal_port;
    let addresses = before.iter().filter(of_service);
    addresses
        .filter_map(|port| port.address.parse::<SocketAddr>().ok())
        .find(|address| address.ip() == ip)
}

/// Accepts on the first of `address`, or rather on the second if that can be had.
async fn accept_all(
    handle: Handle,
    service: Service,
    (address, rather): (SocketAddr, Option<SocketAddr>),
    room: Arc<Semaphore>,
) {
    let again = match rather {
        Some(rather) => TcpListener::bind(rather).await.ok(),
        None => None,
    };
    let listener = match again {
        Some(listener) => listener,
        None => bind(&handle, address).await,
    };
    if let Ok(bound) = listener.local_addr() {
        handle.log().add_note(&format!("published on {bound}"));
        let port = PublishedPort {
            address: bound.to_string(),
            internal_port: service.internal_port,
        };
        show_published(&handle, move |published| published.push(port)).await;
    }
    let mut connections = JoinSet::new();
    loop {
        // At the bound nothing is accepted: clients wait in the kernel's queue.
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((client, _)) => {
                let (handle, service) = (handle.clone(), service.clone());
                connections.spawn(async move {
                    carry::carry(&handle, &service, client).await;
                    drop(place);
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

/// Binds, however long that takes, and says once why it does not succeed.
async fn bind(handle: &Handle, address: SocketAddr) -> TcpListener {
    let mut said = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !said => {
                said = true;
                let message = format!("port {address} can't be published: {error}");
                let event = crate::machine::record::event(EventType::Warning, message);
                let edit = Order::Edit(Box::new(|_| Ok(Some(event))));
                let _ = handle.request_by_supervisor(edit, Until::Admitted).await;
            }
            Err(_) => {}
        }
        sleep(REBIND).await;
    }
}

#[cfg(test)]
mod tests {
    use machine_api::MachineConfig;

    use super::*;
    use crate::machine::{record, view};

    fn machine(autostop: &str, idle: Option<&str>) -> Machine {
        let service = Service {
            autostop: Some(autostop.to_owned()),
            idle_timeout: idle.map(str::to_owned),
            ..Service::default()
        };
        let config = MachineConfig {
            services: vec![service],
            ..MachineConfig::default()
        };
        let mut record = record::new("default", None, config, machine_api::ImageRef::default());
        record.state = crate::machine::state::State::Started;
        view::machine(&record, &std::collections::VecDeque::new(), &[])
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_machine_rests_as_its_services_say() {
        let now = Instant::now();
        let rest = Rest::of(&machine("suspend", Some("7s")), now).unwrap();
        assert_eq!(rest.at - now, Duration::from_secs(7));
        assert!(matches!(rest.order, Order::Suspend));
        let rest = Rest::of(&machine("stop", None), now).unwrap();
        assert_eq!(rest.at - now, IDLE);
        assert!(matches!(rest.order, Order::Stop(_)));
        assert!(Rest::of(&machine("off", None), now).is_none());
    }
}
