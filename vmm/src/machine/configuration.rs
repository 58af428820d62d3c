//! The configuration of a machine: the part that its image keeps, and the part that each VMM gets anew.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::devices::serial::ConsoleOutput;
use crate::devices::virtio::vsock::PortPolicy;

/// Most vCPUs a machine can have.
pub const MAX_VCPUS: u8 = 32;

/// Properties that a machine keeps for life, in its image's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfiguration {
    /// Number of processors.
    pub vcpus: u8,
    /// Memory.
    pub memory_mib: u32,
    /// Its disks, in the order of their devices.
    pub disks: Vec<Disk>,
    /// The guest's vsock address, if it has such a device.
    pub vsock_cid: Option<u32>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// A raw file or block device.
    pub path: PathBuf,
    /// The guest may only read it.
    pub read_only: bool,
}

/// Which machine this VMM serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// As given on the command line.
    pub machine_id: String,
    /// As given on the command line.
    pub generation: u64,
}

/// The part of the configuration that concerns this VMM's host.
#[derive(Debug)]
pub struct HostSide {
    /// Where console output goes.
    pub console: ConsoleOutput,
    /// The host's end of the vsock device.
    pub vsock: Option<VsockHost>,
    /// Whether threads get a system call filter.
    pub sandbox: bool,
    /// Whether the supervisor is told when it is durable that the image was used.
    pub announces_consumption: bool,
}

/// The host's end of a vsock device.
#[derive(Debug, Clone)]
pub struct VsockHost {
    /// Where the host socket is bound.
    pub socket: PathBuf,
    /// How local ports are chosen.
    pub port_policy: PortPolicy,
    /// Whether saved pairs are freed in the guest before a transport reset.
    pub eviction: bool,
    /// How long the guest may take to answer a connection request, from its delivery on.
    pub request_timeout: Duration,
}
