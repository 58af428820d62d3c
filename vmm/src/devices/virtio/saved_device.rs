//! Saving devices: each kind of device with its state, as one type. This is the only place that lists
//! the kinds; `device` and the folders of the devices do not know each other.

use serde::{Deserialize, Serialize};

use super::block::{Block, BlockState};
use super::device::VirtioDevice;
use super::rng::Rng;
use super::vsock::{Vsock, VsockState};

/// State of one device beyond its queues and transport; plain data, not trusted by a restore.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum DeviceState {
    /// A vsock device.
    Vsock(VsockState),
    /// An entropy device has none.
    Rng,
    /// A block device.
    Block(BlockState),
}

/// A virtio device that can be saved.
pub trait SavedDevice: VirtioDevice {
    /// State beyond the queues. May be called at any time while vCPUs are halted and the event loop
    /// does not serve; a device that has work in flight finishes or records it then.
    fn save(&self) -> DeviceState;
}

impl SavedDevice for Vsock {
    fn save(&self) -> DeviceState {
        DeviceState::Vsock(self.state())
    }
}

impl SavedDevice for Rng {
    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }
}

impl SavedDevice for Block {
    fn save(&self) -> DeviceState {
        DeviceState::Block(self.state())
    }
}
