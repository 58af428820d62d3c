//! How a device notifies its guest driver.

/// Raises a device's interrupt. The transport implements it; tests count calls.
pub trait Interrupt: Send + Sync + std::fmt::Debug {
    /// Buffers were used (virtio 1.2, 4.2.2: InterruptStatus bit 0).
    fn signal_used(&self);
    /// The configuration changed (InterruptStatus bit 1).
    fn signal_config(&self);
}
