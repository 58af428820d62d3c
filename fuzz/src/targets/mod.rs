//! The targets, by subject.

pub(crate) mod block;
pub(crate) mod bodies;
pub(crate) mod buses;
pub(crate) mod control;
pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod protocol;
pub(crate) mod rng;
pub(crate) mod vsock;
