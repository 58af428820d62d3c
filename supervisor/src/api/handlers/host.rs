//! The host: what it can do, and whether the supervisor answers.

use std::fs;

use axum::Json;
use axum::extract::State;
use kvm_host::clock::Clock;
use kvm_host::probe::{KvmKind, detect};
use machine_api::{ErrorBody, HostInfo, Ok as Done};

use crate::api::Api;
use crate::api::error::ApiError;
use crate::machine::MachineError;

/// Whether the supervisor answers. Needs no token and says nothing else.
#[utoipa::path(get, operation_id = "Host_health", path = "/health", tag = "host", responses((status = 200, body = Done)))]
pub(crate) async fn health() -> Json<Done> {
    Json(Done { ok: true })
}

/// What the supervisor knows of its host.
#[utoipa::path(get, operation_id = "Host_info", path = "/v1/host", tag = "host",
    responses((status = 200, body = HostInfo), (status = "default", body = ErrorBody)))]
pub(crate) async fn info(State(api): State<Api>) -> Result<Json<HostInfo>, ApiError> {
    let info = tokio::task::spawn_blocking(move || collect(&api)).await;
    info.map(Json)
        .map_err(|_| MachineError::ShuttingDown.into())
}

fn collect(api: &Api) -> HostInfo {
    let configuration = &api.registry.context().configuration;
    let (kvm, kvm_detail) = kvm();
    let images = &api.registry.context().images;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    HostInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kvm: kvm.clone(),
        kvm_detail: kvm_detail.clone(),
        cpu: field_of("/proc/cpuinfo", "model name").unwrap_or_default(),
        clock: Clock::of_this_host().name().to_owned(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .map(|text| text.trim().to_owned())
            .unwrap_or_default(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_mib: field_of("/proc/meminfo", "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
            .map_or(0, |kib| kib / 1_024),
        images: images.names(),
        image_kernels: images.kernels(),
        state_dir: configuration.state_dir.root().display().to_string(),
        vmm: configuration.vmm.display().to_string(),
        vmm_there: configuration.vmm.is_file(),
        address: api.address.as_deref().map(str::to_owned),
    }
}

/// The kind of KVM and its description.
fn kvm() -> (String, String) {
    let found = detect();
    let kind = match found {
        KvmKind::Hardware { .. } => "hardware",
        KvmKind::Virtual { .. } => "virtual",
        KvmKind::Software { .. } => "software",
        KvmKind::Missing { .. } => "missing",
    };
    (kind.to_owned(), found.to_string())
}

fn field_of(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}
