//! The guest of a virtio device: its memory, its driver's queues, and what it does to both.

pub(crate) mod meanwhile;
pub(crate) mod memory;
pub(crate) mod queue;
pub(crate) mod step;
pub(crate) mod subject;
