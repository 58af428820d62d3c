//! A virtio socket device (virtio 1.2, 5.10): streams between programs of the host and of the
//! guest.
//!
//! In all these files, the *local* port is the host's end and the *peer* port the guest's, whoever
//! connected first. `device` combines the parts; `reset` describes a restore.

mod config;
mod connection;
mod counters;
mod credit;
mod device;
mod host_end;
mod host_sockets;
mod muxer;
mod packet;
mod ports;
mod queues;
mod reset;
mod state;
#[cfg(test)]
mod tests;

pub use config::{VsockConfig, VsockError, VsockObserver};
pub use counters::CountersHandle;
pub use device::Vsock;
pub use ports::PortPolicy;
pub use state::{Pair, VsockState};
