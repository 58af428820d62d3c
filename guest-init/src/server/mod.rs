//! From a call to its reply: admits the call into its generation, passes the request to its
//! service, sends refusals.
//!
//! The first call of a new generation wakes the guest up: connections of older generations are
//! closed, the clock is stepped and the random pool reseeded, before anything is answered.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use guest_protocol::{
    Call, GuestStatus, OLDEST_VERSION, Refusal, RefusalKind, Reply, Request, VERSION, Wake,
};
use serde::Deserialize;

use crate::connection::registry::{Registry, Ticket};
use crate::connection::{Connection, ConnectionError, Message};
use crate::os::console::say;
use crate::os::kernel::Kernel;
use crate::os::{clock, sys};
use crate::processes::main_process::MainProcess;
use crate::processes::reaper::Reaper;
use crate::processes::shutdown::{PowerOffRequest, PowerOffRequests};
use crate::services::launch::{self, Launch};
use crate::services::refusal::{ServiceError, refusal};
use crate::services::{cpu_usage, exec, files, forward, main_output, process_list, resources};

pub(crate) mod listener;
mod open_vsocks;
mod wake;

use open_vsocks::LeftoverSockets;

/// Most connections at once. Each may need two descriptors; `boot/settings.rs` allows for that.
const CONNECTIONS: usize = 20_000;

/// Connections reserved for other requests when published ports are busy.
const RESERVED_CONNECTIONS: usize = 100;

/// Time from a connection's start to its call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// `init_version` of a status.
const INIT_VERSION: &str = if cfg!(feature = "leaky") {
    concat!(env!("CARGO_PKG_VERSION"), "+leaky")
} else {
    env!("CARGO_PKG_VERSION")
};

/// The state that calls read and change.
pub(crate) struct Server {
    kernel: Box<dyn Kernel>,
    reaper: Rc<Reaper>,
    registry: Rc<Registry>,
    main: Rc<MainProcess>,
    power_off_requests: PowerOffRequests,
    /// Newest seen; zero before the first call.
    generation: Cell<u64>,
    /// Newest for which a wake-up was applied.
    woken_generation: Cell<Option<u64>>,
    clock_step_ms: Cell<Option<i64>>,
    leftover_sockets: RefCell<LeftoverSockets>,
}

impl Server {
    /// `main_cgroup` is the control group for the main process, if the kernel has one.
    pub(crate) fn new(
        kernel: Box<dyn Kernel>,
        reaper: Rc<Reaper>,
        main_cgroup: Option<PathBuf>,
    ) -> Rc<Self> {
        Rc::new(Self {
            kernel,
            reaper,
            registry: Registry::new(CONNECTIONS),
            main: MainProcess::new(main_cgroup),
            power_off_requests: PowerOffRequests::default(),
            generation: Cell::new(0),
            woken_generation: Cell::new(None),
            clock_step_ms: Cell::new(None),
            leftover_sockets: RefCell::default(),
        })
    }

    pub(crate) fn registry(&self) -> &Rc<Registry> {
        &self.registry
    }

    pub(crate) fn main(&self) -> &Rc<MainProcess> {
        &self.main
    }

    pub(crate) fn power_off_requests(&self) -> &PowerOffRequests {
        &self.power_off_requests
    }

    /// Reads the call, admits it into its generation, and returns its request.
    async fn admit(&self, message: &Message, ticket: &Ticket) -> Result<Request, Refusal> {
        let call = read_call(message)?;
        let newest = self.generation.get();
        if call.generation < newest {
            return Err(Refusal {
                kind: RefusalKind::StaleGeneration,
                message: format!(
                    "the call is of generation {}, the machine in generation {newest}",
                    call.generation
                ),
            });
        }
        ticket.set_generation(call.generation);
        if call.generation > newest {
            // Recorded before anything is awaited, so that no socket of this generation exists.
            self.record_leftover_sockets(newest);
            self.generation.set(call.generation);
            self.clock_step_ms.set(None);
            self.registry.close_older(call.generation).await;
            #[cfg(feature = "leaks")]
            if let Err(error) = crate::services::leaks::leak_one_of_each() {
                say(format_args!("cannot leak: {error}"));
            }
        }
        if let Some(wake) = &call.wake
            && self.woken_generation.get() < Some(call.generation)
        {
            self.woken_generation.set(Some(call.generation));
            self.wake_up(wake);
        }
        Ok(call.request)
    }

    /// Records the sockets that generation `ended` leaves over. Before the first call, no
    /// generation has ended.
    fn record_leftover_sockets(&self, ended: u64) {
        if ended > 0
            && let Ok(sockets) = self.kernel.vsocks()
        {
            self.leftover_sockets.borrow_mut().record(ended, &sockets);
        }
    }

    fn wake_up(&self, wake: &Wake) {
        if let Err(error) = wake::reseed(wake, &*self.kernel) {
            say(error_text::with_causes(&error));
        }
        match wake::step_clock(wake, &*self.kernel) {
            Ok(step_ms) => self.clock_step_ms.set(Some(step_ms)),
            Err(error) => say(error_text::with_causes(&error)),
        }
    }

    fn status(&self, ticket: &Ticket) -> GuestStatus {
        let kernel_list = self.kernel.vsocks().ok();
        let own = self.registry.open_sockets();
        let generation = self.generation.get();
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        GuestStatus {
            boot_id: boot_id.unwrap_or_default().trim().to_owned(),
            generation,
            protocol: VERSION,
            init_version: INIT_VERSION.to_owned(),
            uptime_ms: clock::uptime_ms(),
            realtime_ns: clock::realtime_ns(),
            clock_step_ms: self.clock_step_ms.get(),
            open_vsocks: open_vsocks::count(
                kernel_list.as_deref(),
                &own,
                &self.leftover_sockets.borrow(),
                generation,
                ticket.inode(),
            ),
            main: self.main.describe(),
        }
    }

    fn signal_main(&self, signal: i32) -> Result<(), Refusal> {
        check_signal(signal)?;
        let pid = self.main.running().ok_or_else(|| Refusal {
            kind: RefusalKind::NotFound,
            message: "no main process is running".to_owned(),
        })?;
        sys::send_signal(pid, signal).map_err(|error| refusal(RefusalKind::Failed, &error))
    }

    fn request_power_off(&self, signal: i32, timeout_ms: u64) -> Result<(), Refusal> {
        check_signal(signal)?;
        self.power_off_requests.put(PowerOffRequest {
            signal,
            timeout: Duration::from_millis(timeout_ms),
        });
        Ok(())
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve(server: Rc<Server>, connection: Connection) {
    match serve_call(&server, connection).await {
        Ok(()) | Err(ConnectionError::Ended) => {}
        Err(error) => say(format_args!(
            "gave up a connection: {}",
            error_text::with_causes(&error)
        )),
    }
}

async fn serve_call(server: &Server, connection: Connection) -> Result<(), ConnectionError> {
    let Ok(first) = tokio::time::timeout(CALL_TIMEOUT, connection.receive()).await else {
        say(format_args!(
            "closed a connection that made no call within {CALL_TIMEOUT:?}"
        ));
        return Ok(());
    };
    let served = match server.admit(&first?, connection.ticket()).await {
        Ok(Request::CpuUsage { interval_ms }) => match check_interval(interval_ms) {
            Ok(interval) => return serve_cpu_usage(connection, interval).await,
            Err(refusal) => Err(refusal.into()),
        },
        Ok(request) => dispatch(server, &connection, request).await,
        Err(refusal) => Err(refusal.into()),
    };
    match served {
        Ok(()) => {}
        Err(ServiceError::Refused(refusal)) => {
            connection.send_json(&Reply::Refused(refusal)).await?;
        }
        Err(ServiceError::Connection(error)) => return Err(error),
    }
    connection.wait_for_close().await;
    Ok(())
}

/// Passes every request to its service, except [`Request::CpuUsage`], whose service takes over the
/// connection.
async fn dispatch(
    server: &Server,
    connection: &Connection,
    request: Request,
) -> Result<(), ServiceError> {
    let reply = match request {
        Request::Status => return Ok(serve_status(server, connection).await?),
        Request::Output { from_sequence } => {
            connection.send_json(&Reply::Streaming).await?;
            return Ok(main_output::serve(connection, &server.main, from_sequence).await?);
        }
        Request::Exec { exec, timeout_ms } => {
            let timeout = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms));
            return exec::serve(connection, &server.reaper, &exec, timeout).await;
        }
        Request::Forward { .. } if server.registry.is_nearly_full(RESERVED_CONNECTIONS) => {
            let refusal = Refusal {
                kind: RefusalKind::Failed,
                message: "too many connections are open".to_owned(),
            };
            return Err(refusal.into());
        }
        Request::Forward { port } => return forward::serve(connection, port).await,
        Request::ReadFile { path } => return files::serve_read(connection, &path).await,
        Request::WriteFile { path, mode } => {
            return files::serve_write(connection, &path, mode).await;
        }
        Request::Launch {
            main,
            mounts,
            files,
            hostname,
        } => {
            let request = Launch {
                main,
                mounts,
                files,
                hostname,
            };
            launch::launch(&request, &server.main, &*server.kernel, &server.reaper).await?;
            Reply::Done
        }
        Request::Signal { signal } => {
            server.signal_main(signal)?;
            Reply::Done
        }
        Request::PowerOff { signal, timeout_ms } => {
            server.request_power_off(signal, timeout_ms)?;
            Reply::Done
        }
        Request::Processes => {
            let processes = process_list::list();
            let processes = processes.map_err(|error| refusal(RefusalKind::Failed, &error))?;
            Reply::Processes { processes }
        }
        Request::Resources => {
            let sockets = server.kernel.vsocks().ok();
            let except = connection.ticket().inode();
            Reply::Resources(resources::report(sockets.as_deref(), except))
        }
        Request::CpuUsage { .. } => return Ok(()),
    };
    Ok(connection.send_json(&reply).await?)
}

async fn serve_status(server: &Server, connection: &Connection) -> Result<(), ConnectionError> {
    let has_ended = server.main.exit().is_some();
    let status = server.status(connection.ticket());
    connection.send_json(&Reply::Status(status)).await?;
    if has_ended {
        connection.wait_for_close().await;
        server.main.set_end_reported();
    }
    Ok(())
}

async fn serve_cpu_usage(
    connection: Connection,
    interval: Duration,
) -> Result<(), ConnectionError> {
    connection.send_json(&Reply::Streaming).await?;
    cpu_usage::serve(connection, interval).await
}

/// Reads a call. The version comes first: a call of another version may have other fields.
fn read_call(message: &Message) -> Result<Call, Refusal> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Message::Json(json) = message else {
        return Err(Refusal {
            kind: RefusalKind::Invalid,
            message: "the first message is not a call".to_owned(),
        });
    };
    let invalid = |error: serde_json::Error| refusal(RefusalKind::Invalid, &error);
    let Versioned { version } = serde_json::from_slice(json).map_err(invalid)?;
    if !guest_protocol::speaks(version) {
        return Err(Refusal {
            kind: RefusalKind::Version,
            message: format!(
                "the call is of version {version}, guest-init speaks {OLDEST_VERSION} to {VERSION}"
            ),
        });
    }
    serde_json::from_slice(json).map_err(invalid)
}

fn check_signal(signal: i32) -> Result<(), Refusal> {
    if (1..=64).contains(&signal) {
        return Ok(());
    }
    Err(Refusal {
        kind: RefusalKind::Invalid,
        message: format!("{signal} is not a signal number"),
    })
}

fn check_interval(interval_ms: u32) -> Result<Duration, Refusal> {
    if (10..=3_600_000).contains(&interval_ms) {
        return Ok(Duration::from_millis(interval_ms.into()));
    }
    Err(Refusal {
        kind: RefusalKind::Invalid,
        message: format!("an interval of {interval_ms} ms is not within 10 to 3600000"),
    })
}

#[cfg(test)]
mod tests;
