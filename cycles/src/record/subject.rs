//! What was put through the cycles, as it describes itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a subject says about itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SubjectDescription {
    /// A name for titles, such as `mctl-vmm` or `Firecracker v1.15`.
    pub name: String,
    /// Guest memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Guest processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// How local vsock ports are chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_policy: Option<PortPolicy>,
    /// Whether saved pairs are evicted from the guest before the transport reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eviction: Option<bool>,
    /// Everything else by name: kernel, image, order of reconnection…
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

/// How the VMM chooses local vsock ports.
///
/// A type of its own and not that of the Machines API, as [`super::AttemptOutcome`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortPolicy {
    /// From 2^30 upward after every restore.
    Fixed,
    /// Upward from the last port that was saved.
    Continue,
    /// Upward from a random port, drawn at every start and restore.
    Random,
}

impl PortPolicy {
    /// The name that reports, tables and flags use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Continue => "continue",
            Self::Random => "random",
        }
    }
}
