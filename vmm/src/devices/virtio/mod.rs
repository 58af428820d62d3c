//! Virtio devices and their MMIO transport.

pub mod device;
pub mod interrupt;
pub mod mmio;
mod request_queue;
pub mod saved_device;

pub mod block;
pub mod rng;
pub mod vsock;

#[cfg(test)]
pub(crate) mod testing;
