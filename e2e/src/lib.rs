//! The harness on real guests: the main job, the matrix, the benchmarks, and what tests need.
//!
//! A library so that `tests/promises` drives hosts and machines in the same way as `mctl-e2e`.
//! It knows the Machines API and real binaries, nothing of the other crates' insides.

#![forbid(unsafe_code)]

pub mod artifacts;
pub mod bench;
pub mod counter;
pub mod firecracker;
pub mod host;
pub mod main_job;
pub mod matrix;
pub mod output;
pub mod peer;
pub mod report_files;
pub mod scale;
