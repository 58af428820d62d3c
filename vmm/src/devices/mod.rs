//! Devices. They use guest memory, queues and interrupts, and do not know KVM or who drives them.

pub mod power;
pub mod serial;
pub mod virtio;
