//! The saved state of a block device.

use serde::{Deserialize, Serialize};

/// State of a block device. It is held while it is saved, so no request is in service; those that wait are
/// in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    pub(super) size_bytes: u64,
    pub(super) read_only: bool,
    /// The serial number that the guest has seen.
    pub(super) id: String,
}
