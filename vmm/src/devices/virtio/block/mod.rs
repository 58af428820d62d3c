//! A virtio block device (virtio 1.2, 5.2) on a raw file or a block device of the host.
//!
//! Requests are served one after the other, at once, by whoever serves the queue.

mod backend;
mod device;
mod request;
mod state;

#[cfg(test)]
mod tests;

pub use backend::BlockError;
pub use device::{Block, BlockConfig};
pub use state::BlockState;
