//! Every unsafe block of this crate, and helpers around raw descriptors.

pub(crate) mod cpuid;
pub(crate) mod fd;
pub(crate) mod guest_write;
mod in_handler;
pub(crate) mod kick;
pub(crate) mod kvm;
pub(crate) mod memory_error;
pub(crate) mod pagemap;
pub(crate) mod priority;
pub(crate) mod termination;
pub(crate) mod tsc;
pub(crate) mod violation;
