//! A virtio block device (virtio 1.2, 5.2) on a raw file or a block device of the host.
//!
//! Each request is served at once, on the thread that serves the queue.

mod backend;
mod device;
mod request;
mod state;

#[cfg(test)]
mod tests;

pub use backend::{BlockConfig, BlockError};
pub use device::Block;
pub use state::BlockState;
