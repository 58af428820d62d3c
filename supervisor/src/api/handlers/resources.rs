//! What a machine and the processes that serve it have in use.
//!
//! Each figure is taken once, for the request: nothing is measured while nobody asks. A figure that
//! cannot be had is left out, and the others are answered.

use std::io;

use axum::Json;
use axum::extract::State;
use guest_protocol::{GuestResources, InitUsage};
use machine_api::{ErrorBody, MachineResources, Operation, ProcessUsage};
use tokio::runtime;
use tokio::time::timeout;

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::handlers::inspect::{ASK_LIMIT, counters, past_leaked_pairs};
use crate::api::request::extract::Target;
use crate::disk_usage::{self, FolderUsage};
use crate::guest::GuestStream;
use crate::logs;
use crate::machine::MachineError;
use crate::machine::handle::LiveGuest;
use crate::paths::MachineDir;
use crate::vmm_process::{VmmProcess, VmmUsage};

/// Timings that are read to find the last suspend. Each start may have failed some times since.
const LOOK_BACK: u32 = 32;

/// What a machine has in use: descriptors, threads, memory, tasks, vsocks, files.
#[utoipa::path(get, operation_id = "Machines_resources", path = "/v1/apps/{app}/machines/{machine}/resources", tag = "inspect",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = MachineResources), (status = "default", body = ErrorBody)))]
pub(crate) async fn show(
    State(api): State<Api>,
    Target(handle): Target,
) -> Result<Json<MachineResources>, ApiError> {
    let context = api.registry.context();
    // A machine that does not run has files all the same.
    let live = handle.live_soon().await.ok();
    let (guest, connection) = match &live {
        Some(live) => guest(live).await.unzip(),
        None => (None, None),
    };
    let counters = match &live {
        Some(live) => counters(live).await,
        None => None,
    };
    let store = &context.store;
    let timings = store.timings(handle.id(), LOOK_BACK).await;
    let timings = timings.map_err(MachineError::from)?;
    let database_bytes = store.bytes().await.map_err(MachineError::from)?;
    let vmm = live.and_then(|live| live.process);
    let dir = context.configuration.state_dir.machine(handle.id());
    let measured = tokio::task::spawn_blocking(move || Measured::now(vmm.as_ref(), &dir)).await;
    let measured = measured.map_err(|_| MachineError::ShuttingDown)?;
    // Open until now: while it closes, guest and VMM would have sometimes one socket more.
    drop(connection);
    let by_state = |states: [(&'static str, u64); 5]| {
        let states = states.into_iter();
        states
            .map(|(name, count)| (name.to_owned(), count))
            .collect()
    };
    Ok(Json(MachineResources {
        generation: handle.view().generation,
        supervisor: process(measured.supervisor),
        supervisor_tasks: Some(runtime::Handle::current().metrics().num_alive_tasks() as u64),
        vmm: measured.vmm.map(|vmm| process(vmm.process)),
        vmm_guest_anonymous_bytes: measured.vmm.and_then(|vmm| vmm.guest_anonymous_bytes),
        vmm_vsock_connections: counters
            .and_then(|counters| counters.connections)
            .map(|connections| by_state(connections.by_state())),
        guest_init: guest.as_ref().map(|guest| init(&guest.init)),
        guest_tasks: guest.as_ref().and_then(|guest| guest.tasks),
        guest_vsocks: guest.and_then(|guest| guest.vsocks),
        image_bytes: timings
            .iter()
            .filter(|timing| timing.operation == Operation::Suspend)
            .find_map(|timing| timing.image_bytes_allocated),
        database_bytes: Some(database_bytes),
        log_bytes: shown(measured.log_bytes, "logs"),
        machine_folder_bytes: measured.folder.as_ref().ok().map(|folder| folder.bytes),
        machine_folder_files: shown(measured.folder, "folder").map(|folder| folder.entries),
    }))
}

/// What guest-init reports, if it answers in time, and the connection to it.
async fn guest(live: &LiveGuest) -> Option<(GuestResources, GuestStream)> {
    let ask = || live.address.resources();
    timeout(ASK_LIMIT, past_leaked_pairs(ask)).await.ok()?.ok()
}

/// What is read from `/proc` and the file system, on a thread that may block.
struct Measured {
    supervisor: process_usage::ProcessUsage,
    vmm: Option<VmmUsage>,
    log_bytes: io::Result<u64>,
    folder: io::Result<FolderUsage>,
}

impl Measured {
    fn now(vmm: Option<&VmmProcess>, dir: &MachineDir) -> Self {
        Self {
            supervisor: process_usage::ProcessUsage::own(),
            vmm: vmm.and_then(|vmm| vmm.usage(&dir.image_memory())),
            log_bytes: logs::bytes(dir),
            folder: disk_usage::of_folder(dir.root()),
        }
    }
}

fn shown<T>(measured: io::Result<T>, what: &'static str) -> Option<T> {
    if let Err(error) = &measured {
        tracing::warn!(%error, what, "cannot measure files of a machine");
    }
    measured.ok()
}

fn process(usage: process_usage::ProcessUsage) -> ProcessUsage {
    ProcessUsage {
        descriptors: usage.descriptors,
        threads: usage.threads,
        resident_bytes: usage.resident_bytes,
        anonymous_bytes: usage.anonymous_bytes,
        epoll_entries: usage.epoll_entries,
        timers: usage.timers,
    }
}

fn init(usage: &InitUsage) -> ProcessUsage {
    ProcessUsage {
        descriptors: usage.descriptors,
        threads: usage.threads,
        resident_bytes: usage.resident_bytes,
        anonymous_bytes: usage.anonymous_bytes,
        epoll_entries: usage.epoll_entries,
        timers: usage.timers,
    }
}
