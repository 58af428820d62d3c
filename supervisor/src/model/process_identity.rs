//! Which process a machine's VMM is.

use serde::{Deserialize, Serialize};

/// One process of this host for all time. A pid alone is a number that the kernel reuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessIdentity {
    /// Process id.
    pub(crate) pid: i32,
    /// Start time in clock ticks since boot, from `/proc/<pid>/stat`.
    pub(crate) start_ticks: u64,
    /// The host's boot id.
    pub(crate) boot_id: String,
}
