//! What is in use in a guest: whatever could grow with each resume.
//!
//! Fields may be added. What a guest-init does not report is absent, and so is what its kernel does
//! not show.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is in use in the guest when it is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestResources {
    /// guest-init itself.
    pub init: InitUsage,
    /// Number of tasks: processes and threads, those of the kernel included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u64>,
    /// Number of vsock sockets of all processes by state: `established`, `connecting`, `closing`,
    /// `closed`, `listening`, `unconnected`, `other`. The socket that carries this reply is left
    /// out. Absent if the kernel has no list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsocks: Option<BTreeMap<String, u64>>,
}

/// What guest-init uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitUsage {
    /// Open descriptors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<u64>,
    /// Threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u64>,
    /// Resident memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Resident memory that no file backs, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous_bytes: Option<u64>,
    /// Descriptors that its epoll descriptors watch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoll_entries: Option<u64>,
    /// Timers that the kernel knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<u64>,
}
