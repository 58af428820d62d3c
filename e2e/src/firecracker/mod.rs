//! Any Firecracker, put through the same cycles: boots our kernel and initramfs in a binary that
//! the user supplies, suspends by snapshot, resumes by load, and makes the same readiness check.
//!
//! The project ships no such binary. What is measured is what an operator's platform would do:
//! from the first API call to the process gone, and from the process's start to init's status.

mod api;
mod guest;
mod process;
mod readiness;
mod subject;
#[cfg(test)]
mod tests;

pub use subject::{Firecracker, FirecrackerError, FirecrackerOptions};
