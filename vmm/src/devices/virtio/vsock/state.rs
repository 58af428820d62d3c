//! The saved state of a vsock device: plain data, which a restore does not trust.

use serde::{Deserialize, Serialize};

use super::ports::{FIRST_LOCAL_PORT, LAST_LOCAL_PORT};

/// Most pairs that a state may hold; more than a device ever has connections.
const MAX_SAVED_PAIRS: usize = 1 << 17;

/// The two ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pair {
    /// The host's end.
    pub local: u32,
    /// The guest's end.
    pub peer: u32,
}

/// State of a vsock device.
///
/// Host connections end with the process that saves, so the state is about the guest's view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The address that the guest driver has read.
    pub(super) guest_cid: u32,
    /// The first port of the policy `continue` after a restore.
    pub(super) next_local_port: u32,
    /// Pairs that may be connected in the guest.
    pub(super) connected: Vec<Pair>,
    /// Pairs whose refusal has not reached the guest yet.
    pub(super) refused: Vec<Pair>,
    /// The avail index of the event queue when a transport reset was published that the guest has
    /// not acknowledged.
    pub(super) unacknowledged_reset: Option<u16>,
}

impl VsockState {
    /// Checks the properties that a device relies on.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if !(FIRST_LOCAL_PORT..=LAST_LOCAL_PORT).contains(&self.next_local_port) {
            return Err("its next local port is out of range");
        }
        if self.connected.len() > MAX_SAVED_PAIRS || self.refused.len() > MAX_SAVED_PAIRS {
            return Err("it has too many pairs");
        }
        Ok(())
    }
}
