//! What a guest does to any virtio device.

use serde::{Deserialize, Serialize};

use super::memory::{BUFFERS, QUEUES};
use super::queue::INDIRECT;
use crate::changed::Change;

/// An address that the guest uses.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Address {
    /// In the area for buffers.
    Buffer(u16),
    /// Anywhere, rings and holes included.
    Any(u64),
}

impl Address {
    /// The address; in the area for buffers if the guest is `confined` to it.
    pub(crate) fn resolve(self, confined: bool) -> u64 {
        match self {
            Self::Any(address) if !confined => address,
            Self::Any(address) => BUFFERS.start + address % (BUFFERS.end - BUFFERS.start),
            Self::Buffer(offset) => BUFFERS.start + u64::from(offset),
        }
    }
}

/// A change of memory that another processor of the guest makes while the device is served.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Meanwhile {
    /// Bytes of a buffer, or anywhere.
    Write { address: Address, bytes: Vec<u8> },
    /// A descriptor.
    Store {
        queue: u8,
        slot: u8,
        descriptor: AnyDescriptor,
    },
    /// A chain that has been there before is offered once more.
    Refill { queue: u8, head: u8 },
}

/// A descriptor of any content.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct AnyDescriptor {
    pub(crate) address: Address,
    pub(crate) bytes: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl AnyDescriptor {
    /// Flags that a guest that is `confined` uses: a table of descriptors could lead anywhere.
    pub(crate) fn flags(&self, confined: bool) -> u16 {
        if confined {
            self.flags & !INDIRECT
        } else {
            self.flags
        }
    }

    /// Length of the buffer, which ends where the area for buffers does if the guest is `confined`.
    pub(crate) fn bytes(&self, confined: bool) -> u32 {
        let room = BUFFERS.end.saturating_sub(self.address.resolve(confined));
        match u32::try_from(room) {
            Ok(room) if confined => self.bytes.min(room),
            _ => self.bytes,
        }
    }
}

/// One step of a guest, or of the host that has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Offers a chain as a driver does: bytes to read, spaces to write to.
    Offer {
        queue: u8,
        readable: Vec<Vec<u8>>,
        writable: Vec<u16>,
    },
    /// Stores any descriptor.
    Store {
        queue: u8,
        slot: u8,
        descriptor: AnyDescriptor,
    },
    /// Makes a chain available that may be none.
    Publish { queue: u8, head: u16 },
    /// Claims that more or fewer chains are available than there are.
    Jump { queue: u8, by: u16 },
    /// Writes to memory.
    Write { address: Address, bytes: Vec<u8> },
    /// Rings a doorbell.
    Kick { queue: u8 },
    /// Rings a doorbell, and changes memory while the device is served.
    KickWhile { queue: u8, changes: Vec<Meanwhile> },
    /// The device's backend is served.
    Backend,
    /// Sets the device up, after a reset if needed, with queues of these sizes (powers of two).
    Establish { sizes: [u8; QUEUES], features: u8 },
    /// Resets the device.
    Reset,
    /// Writes any register, or any address of the configuration space.
    WriteRegister { offset: u16, value: u32 },
    /// Reads from any register or address of the configuration space.
    Read { offset: u16, bytes: u8 },
    /// The machine is saved and restored.
    Restore,
    /// The machine is saved and restored from a state that has been changed.
    RestoreChanged { change: Change },
    /// The device is held, for a save that does not come.
    Hold,
    /// The hold ends.
    Release,
    /// What a restored device holds back may pass.
    LetWritesPass,
}
