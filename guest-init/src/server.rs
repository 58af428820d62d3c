//! From a call to its reply: which generation it belongs to, and who serves it.
//!
//! The first call of a new generation wakes the guest up: connections of older generations are
//! closed, the clock is stepped and the random pool reseeded, before anything is answered.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use guest_protocol::{
    Call, ExecSpec, GuestStatus, LaunchFile, Refusal, RefusalKind, Reply, Request, VERSION, Wake,
};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::sync::Notify;

use crate::connection::{Connection, ConnectionError, Message};
use crate::console::{chain, say};
#[cfg(not(feature = "leaky"))]
use crate::cpu_usage;
use crate::kernel::Kernel;
#[cfg(feature = "leaky")]
use crate::leaky;
use crate::main_process::MainProcess;
use crate::output::realtime_ns;
use crate::reaper::Reaper;
use crate::registry::{Registry, Ticket};
use crate::shutdown::Order;
use crate::vsock_diag::Opened;
use crate::{exec, files, forward, output_stream, processes, procfs, sys, vsock_diag, wake};

/// Connections at once. Each may need two descriptors; `settings.rs` allows for that.
const CONNECTIONS: usize = 20_000;

/// Connections that stay free for other requests when published ports are busy.
const RESERVED_CONNECTIONS: usize = 100;

/// How long a connection may take to say what it wants.
const CALL: Duration = Duration::from_secs(10);

/// How long a block device may take to appear after its module was loaded.
const DEVICE: Duration = Duration::from_secs(2);
const DEVICE_POLL: Duration = Duration::from_millis(10);

/// What `init_version` says.
const INIT_VERSION: &str = if cfg!(feature = "leaky") {
    concat!(env!("CARGO_PKG_VERSION"), "+leaky")
} else {
    env!("CARGO_PKG_VERSION")
};

/// Everything that calls act upon.
pub(crate) struct Server {
    kernel: Box<dyn Kernel>,
    reaper: Rc<Reaper>,
    registry: Rc<Registry>,
    main: Rc<MainProcess>,
    main_cgroup: Option<PathBuf>,
    /// Newest seen; zero before the first call.
    generation: Cell<u64>,
    /// Last one for which a wake-up call was applied.
    woken_generation: Cell<Option<u64>>,
    clock_step_ms: Cell<Option<i64>>,
    opened: RefCell<Opened>,
    power_off: RefCell<Option<Order>>,
    power_off_ordered: Notify,
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
            main: MainProcess::new(),
            main_cgroup,
            generation: Cell::new(0),
            woken_generation: Cell::new(None),
            clock_step_ms: Cell::new(None),
            opened: RefCell::default(),
            power_off: RefCell::new(None),
            power_off_ordered: Notify::new(),
        })
    }

    pub(crate) fn registry(&self) -> &Rc<Registry> {
        &self.registry
    }

    pub(crate) fn main(&self) -> &Rc<MainProcess> {
        &self.main
    }

    /// Waits until a call asks for the guest to be powered off.
    pub(crate) async fn power_off_ordered(&self) -> Order {
        loop {
            let ordered = self.power_off_ordered.notified();
            if let Some(order) = self.power_off.borrow_mut().take() {
                return order;
            }
            ordered.await;
        }
    }

    /// Accepts the call into its generation, waking the guest up if that is new.
    async fn admit(&self, call: &Call, ticket: &Ticket) -> Result<(), Refusal> {
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
            // Before anything is awaited, so that nothing of this generation is there yet.
            self.note_what_is_left(newest);
            self.generation.set(call.generation);
            self.clock_step_ms.set(None);
            self.registry.close_older(call.generation).await;
        }
        if let Some(wake) = &call.wake
            && self.woken_generation.get() < Some(call.generation)
        {
            self.woken_generation.set(Some(call.generation));
            self.wake_up(wake);
        }
        Ok(())
    }

    /// Notes the sockets that generation `ended` has left; none before the first call, when
    /// nothing has ended yet.
    fn note_what_is_left(&self, ended: u64) {
        if ended > 0
            && let Ok(sockets) = self.kernel.vsocks()
        {
            self.opened.borrow_mut().note_end_of(ended, &sockets);
        }
    }

    fn wake_up(&self, wake: &Wake) {
        if let Err(error) = wake::reseed(wake, &*self.kernel) {
            say(chain(&error));
        }
        match wake::step_clock(wake, &*self.kernel) {
            Ok(step_ms) => self.clock_step_ms.set(Some(step_ms)),
            Err(error) => say(chain(&error)),
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
            init_version: INIT_VERSION.to_owned(),
            uptime_ms: procfs::uptime_ms(),
            realtime_ns: realtime_ns(),
            clock_step_ms: self.clock_step_ms.get(),
            open_vsocks: vsock_diag::count(
                kernel_list.as_deref(),
                &own,
                &self.opened.borrow(),
                generation,
                ticket.inode(),
            ),
            main: self.main.describe(),
        }
    }

    async fn launch(
        &self,
        main: &ExecSpec,
        mounts: &[(String, String, bool)],
        launch_files: &[LaunchFile],
        hostname: &str,
    ) -> Reply {
        if self.main.is_absent() {
            for (device, ..) in mounts {
                wait_for_device(device).await;
            }
        }
        // From here on nothing is awaited, so two launches can't get in each other's way.
        if self.main.is_absent() {
            if let Err(error) = self.kernel.set_hostname(hostname) {
                say(format_args!(
                    "cannot set the host name {hostname:?}: {error}"
                ));
            }
            for (device, target, read_only) in mounts {
                if let Err(error) = self.kernel.mount(device, target, *read_only) {
                    return Reply::Refused(refusal(RefusalKind::Failed, &error));
                }
            }
            if let Some(refusal) = launch_files.iter().find_map(|file| files::put(file).err()) {
                return Reply::Refused(refusal);
            }
        }
        match self
            .main
            .launch(main, self.main_cgroup.as_deref(), &self.reaper)
        {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Refused(refusal(error.kind(), &error)),
        }
    }

    fn signal_main(&self, signal: i32) -> Reply {
        if let Err(refusal) = check_signal(signal) {
            return Reply::Refused(refusal);
        }
        let sent = self
            .main
            .running()
            .map(|pid: Pid| sys::send_signal(pid, signal));
        match sent {
            Some(Ok(())) => Reply::Done,
            Some(Err(error)) => Reply::Refused(refusal(RefusalKind::Failed, &error)),
            None => Reply::Refused(Refusal {
                kind: RefusalKind::NotFound,
                message: "no main process runs".to_owned(),
            }),
        }
    }

    fn order_power_off(&self, signal: i32, timeout_ms: u64) -> Reply {
        if let Err(refusal) = check_signal(signal) {
            return Reply::Refused(refusal);
        }
        self.power_off.replace(Some(Order {
            signal,
            timeout: Duration::from_millis(timeout_ms),
        }));
        self.power_off_ordered.notify_waiters();
        Reply::Done
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve(server: Rc<Server>, connection: Connection) {
    match serve_call(&server, connection).await {
        Ok(()) | Err(ConnectionError::Ended) => {}
        Err(error) => say(format_args!("gave up a connection: {}", chain(&error))),
    }
}

async fn serve_call(server: &Rc<Server>, connection: Connection) -> Result<(), ConnectionError> {
    let Ok(first) = tokio::time::timeout(CALL, connection.receive()).await else {
        say(format_args!(
            "closed a connection that made no call within {CALL:?}"
        ));
        return Ok(());
    };
    let call = match read_call(&first?) {
        Ok(call) => call,
        Err(refusal) => return answer(&connection, &Reply::Refused(refusal)).await,
    };
    if let Err(refusal) = server.admit(&call, connection.ticket()).await {
        return answer(&connection, &Reply::Refused(refusal)).await;
    }
    match call.request {
        Request::CpuUsage { interval_ms } => serve_cpu_usage(connection, interval_ms).await,
        request => {
            dispatch(server, &connection, request).await?;
            connection.farewell().await;
            Ok(())
        }
    }
}

/// Serves every request that leaves the connection in its owner's hands.
async fn dispatch(
    server: &Server,
    connection: &Connection,
    request: Request,
) -> Result<(), ConnectionError> {
    let reply = match request {
        Request::Status => return serve_status(server, connection).await,
        Request::Output { from_sequence } => {
            connection.send_json(&Reply::Streaming).await?;
            return output_stream::serve(connection, &server.main, from_sequence).await;
        }
        Request::Exec { exec, timeout_ms } => {
            let timeout = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms));
            return exec::serve(connection, &server.reaper, &exec, timeout).await;
        }
        Request::Forward { .. } if server.registry.is_nearly_full(RESERVED_CONNECTIONS) => {
            Reply::Refused(Refusal {
                kind: RefusalKind::Failed,
                message: "too many connections are open".to_owned(),
            })
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
        } => server.launch(&main, &mounts, &files, &hostname).await,
        Request::Signal { signal } => server.signal_main(signal),
        Request::PowerOff { signal, timeout_ms } => server.order_power_off(signal, timeout_ms),
        Request::Processes => match processes::list() {
            Ok(processes) => Reply::Processes { processes },
            Err(error) => Reply::Refused(refusal(RefusalKind::Failed, &error)),
        },
        Request::CpuUsage { .. } => return Ok(()),
    };
    connection.send_json(&reply).await
}

async fn serve_status(server: &Server, connection: &Connection) -> Result<(), ConnectionError> {
    let tells_end = server.main.exit().is_some();
    let status = server.status(connection.ticket());
    connection.send_json(&Reply::Status(status)).await?;
    if tells_end {
        connection.farewell().await;
        server.main.note_end_told();
    }
    Ok(())
}

async fn serve_cpu_usage(connection: Connection, interval_ms: u32) -> Result<(), ConnectionError> {
    if !(10..=3_600_000).contains(&interval_ms) {
        let refusal = Refusal {
            kind: RefusalKind::Invalid,
            message: format!("an interval of {interval_ms} ms is not within 10 to 3600000"),
        };
        return answer(&connection, &Reply::Refused(refusal)).await;
    }
    connection.send_json(&Reply::Streaming).await?;
    let interval = Duration::from_millis(interval_ms.into());
    #[cfg(feature = "leaky")]
    return leaky::serve(connection, interval).await;
    #[cfg(not(feature = "leaky"))]
    return cpu_usage::serve(&connection, interval).await;
}

async fn answer(connection: &Connection, reply: &Reply) -> Result<(), ConnectionError> {
    connection.send_json(reply).await?;
    connection.farewell().await;
    Ok(())
}

/// Reads a call, the version first: a call of another one may look different otherwise.
fn read_call(message: &Message) -> Result<Call, Refusal> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Message::Json(json) = message else {
        return Err(Refusal {
            kind: RefusalKind::Invalid,
            message: "the first message is no call".to_owned(),
        });
    };
    let invalid = |error: serde_json::Error| refusal(RefusalKind::Invalid, &error);
    let Versioned { version } = serde_json::from_slice(json).map_err(invalid)?;
    if version != VERSION {
        return Err(Refusal {
            kind: RefusalKind::Version,
            message: format!("the call is of version {version}, guest-init of {VERSION}"),
        });
    }
    serde_json::from_slice(json).map_err(invalid)
}

/// A refusal for `error`, causes included.
pub(crate) fn refusal(kind: RefusalKind, error: &dyn Error) -> Refusal {
    Refusal {
        kind,
        message: chain(error),
    }
}

fn check_signal(signal: i32) -> Result<(), Refusal> {
    if (1..=64).contains(&signal) {
        return Ok(());
    }
    Err(Refusal {
        kind: RefusalKind::Invalid,
        message: format!("{signal} is no signal"),
    })
}

/// Waits for a device node to appear, in vain perhaps: mounting will tell.
async fn wait_for_device(device: &str) {
    let appears = async {
        while !std::path::Path::new(device).exists() {
            tokio::time::sleep(DEVICE_POLL).await;
        }
    };
    if tokio::time::timeout(DEVICE, appears).await.is_err() {
        say(format_args!(
            "device {device} did not appear within {DEVICE:?}"
        ));
    }
}

#[cfg(test)]
mod tests;
