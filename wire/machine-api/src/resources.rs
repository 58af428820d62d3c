//! *Extension*: `GET …/resources`, what a machine has in use: whatever could grow with each suspend
//! and resume without showing in their latency.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// *Extension*: answer to `GET …/resources`: what a machine and the processes that serve it have in
/// use now. A figure that cannot be had is absent: of guest and VMM while the machine does not run,
/// of anything that a kernel does not show or an earlier build does not report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineResources {
    /// Generation of the machine.
    pub generation: u64,
    /// The supervisor, which serves all machines of its host.
    pub supervisor: ProcessUsage,
    /// Number of tasks of the supervisor's runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervisor_tasks: Option<u64>,
    /// The VMM. After a resume its anonymous memory is that of the VMM alone; after a boot it
    /// includes the guest's, which cannot be told apart then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<ProcessUsage>,
    /// Guest memory that was written since the resume, in bytes; absent after a boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_guest_anonymous_bytes: Option<u64>,
    /// Number of vsock connections in the VMM by state: `requesting`, `requested`, `accepting`,
    /// `established`, `draining`. The one on which the guest is asked for this answer counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_vsock_connections: Option<BTreeMap<String, u64>>,
    /// guest-init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_init: Option<ProcessUsage>,
    /// Number of processes and threads of the guest, those of its kernel included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_tasks: Option<u64>,
    /// Number of vsock sockets of all processes of the guest by state: `established`, `connecting`,
    /// `closing`, `closed`, `listening`, `unconnected`, `other`. The socket on which this was asked
    /// is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_vsocks: Option<BTreeMap<String, u64>>,
    /// Bytes that the image occupied on disk when it was last written; absent before the first
    /// suspend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_bytes: Option<u64>,
    /// Size of the supervisor's database for all machines, in bytes: its pages, those that are only
    /// in its write-ahead log included, and the blocks of that log, which are reserved beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_bytes: Option<u64>,
    /// Bytes in the machine's logs: the log itself, the one before its last rotation, the console,
    /// the log of the VMMs. What was released behind a console's reader does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
    /// Bytes in all files of the machine's folder, image and logs included. Neither the holes of a
    /// file count nor blocks that are only reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_folder_bytes: Option<u64>,
    /// Number of files and folders in the machine's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_folder_files: Option<u64>,
}

/// *Extension*: what one process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessUsage {
    /// Number of open descriptors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<u64>,
    /// Number of threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u64>,
    /// Resident memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Resident memory that no file backs, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous_bytes: Option<u64>,
    /// Number of descriptors that its epoll descriptors watch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoll_entries: Option<u64>,
    /// Number of timers that the kernel knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<u64>,
}
