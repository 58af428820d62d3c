//! Other VMMs as subjects of the same cycles: each boots our kernel and initramfs in a binary that the
//! user supplies, suspends by a snapshot, resumes from it, and gets the readiness check of our own.
//!
//! The project ships no such binary. The measured spans are those of an operator's platform: from
//! the first API call until the process is gone, and from the process's start until init has answered
//! and the monitor is open again. What differs between VMMs is in `driver` and one file per VMM.

mod api;
mod cloud_hypervisor;
mod driver;
mod firecracker;
mod guest;
mod kind;
mod machine;
mod process;
mod readiness;
#[cfg(test)]
mod tests;

pub use kind::PeerKind;
pub use machine::{PeerError, PeerMachine, PeerOptions};
