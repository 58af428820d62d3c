//! Firecracker as a subject of the same cycles: boots our kernel and initramfs in a binary that the
//! user supplies, suspends by snapshot, resumes by load, and makes the same readiness check.
//!
//! The project ships no such binary. The measured spans are those of an operator's platform: from
//! the first API call until the process is gone, and from the process's start until init's status.

mod api;
mod guest;
mod process;
mod readiness;
mod subject;
#[cfg(test)]
mod tests;

pub use subject::{Firecracker, FirecrackerError, FirecrackerOptions};
