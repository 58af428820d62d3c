//! Every unsafe block and raw libc call of this crate.

pub(crate) mod fd;
pub(crate) mod guest_write;
pub(crate) mod kick;
pub(crate) mod kvm;
pub(crate) mod pagemap;
pub(crate) mod priority;
pub(crate) mod termination;
pub(crate) mod tsc;
pub(crate) mod violation;
