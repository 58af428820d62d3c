//! *Extension*: `GET /v1/host`, the host of a supervisor.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// *Extension*: answer to `GET /v1/host`: what the supervisor knows about its host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Version of the supervisor.
    pub version: String,
    /// Kind of KVM: `hardware`, `virtual`, `software` or `missing`.
    pub kvm: String,
    /// Description of the KVM for people, with its measured speed.
    pub kvm_detail: String,
    /// *Extension*: the clock of the host, by which it measures: `real`, or `virtual` in a virtual KVM
    /// host whose clock counts emulated instructions.
    #[serde(default = "real_time")]
    pub clock: String,
    /// Name of the CPU.
    pub cpu: String,
    /// Release of the host's kernel.
    pub kernel: String,
    /// Number of CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Names of the images in the store.
    pub images: Vec<String>,
    /// Kernel release of each image, by the image's name.
    #[serde(default)]
    pub image_kernels: BTreeMap<String, String>,
    /// Path of the state directory.
    pub state_dir: String,
    /// Path of the VMM binary.
    pub vmm: String,
    /// Whether the VMM binary exists.
    #[serde(default = "assumed_present")]
    pub vmm_there: bool,
    /// Address of the API over TCP, such as `https://127.0.0.1:4280`; absent if it is not served
    /// there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// Supervisors that do not report the field know no other clock.
fn real_time() -> String {
    "real".to_owned()
}

/// Supervisors that do not report the field are assumed to have their VMM.
const fn assumed_present() -> bool {
    true
}
