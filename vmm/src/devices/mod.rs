//! Devices. They know guest memory, queues and interrupts; no KVM, no machine, no policy.

pub mod power;
pub mod serial;
pub mod virtio;
