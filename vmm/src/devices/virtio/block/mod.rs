//! A virtio block device (virtio 1.2, 5.2) on a raw file or a block device of the host.
//!
//! Each disk has a thread of its own, so that nothing else waits for it.

mod backend;
mod device;
mod identity;
mod request;
mod state;
mod worker;

#[cfg(test)]
mod tests;

pub use backend::{BlockConfig, BlockError};
pub use device::Block;
pub use identity::{Difference, DiskIdentity, mark};
pub use state::BlockState;
pub use worker::BlockHost;
