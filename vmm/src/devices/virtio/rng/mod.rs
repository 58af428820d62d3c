//! A virtio entropy device (virtio 1.2, 5.4): the guest's buffers are filled from the host's random
//! pool.

mod device;

#[cfg(test)]
mod tests;

pub use device::Rng;
