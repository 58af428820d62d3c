//! The configuration of a vsock device, and why a device can't be made.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::ports::PortPolicy;

/// Receives events of the device.
pub trait VsockObserver: Send + Sync + std::fmt::Debug {
    /// The guest has handled the transport reset of a restore. Called under the device's lock; may
    /// not block.
    fn reset_acknowledged(&self);
}

/// The configuration of a vsock device.
#[derive(Debug, Clone)]
pub struct VsockConfig {
    /// The guest's address, at least 3.
    pub guest_cid: u32,
    /// Where the host socket is bound. Replaces a stale socket there.
    pub host_socket: PathBuf,
    /// How local ports are chosen.
    pub port_policy: PortPolicy,
    /// Whether the saved pairs are freed in the guest before a transport reset.
    pub eviction: bool,
    /// How long the guest may take to answer a connection request, from its delivery on.
    pub request_timeout: Duration,
    /// Receives the acknowledgement of a transport reset.
    pub observer: Arc<dyn VsockObserver>,
}

/// Why a vsock device can't be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// CIDs below 3 are reserved (virtio 1.2, 5.10.4), as is the highest.
    #[error("guest cid {cid} is reserved; use one from 3 to 4294967294")]
    ReservedCid {
        /// The cid asked for.
        cid: u32,
    },
    /// The host socket can't be bound.
    #[error("cannot bind host socket {path}")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The host has no descriptor for an epoll or a timer.
    #[error("cannot watch host socket {path}")]
    Watch {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The saved state contradicts itself.
    #[error("saved state of the vsock device is not usable: {what}")]
    State {
        /// What is wrong.
        what: &'static str,
    },
}
