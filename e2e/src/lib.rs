//! The harness on real guests: the main job, the matrix, the benchmarks, and the parts that tests share.
//!
//! It is a library so that `tests/promises` drives hosts and machines in the same way as `mctl-e2e`.
//! It knows the Machines API and real binaries, but no internals of other crates.
//!
//! `main_job`, `matrix`, `scale`, `peer` and `bench` are the commands; `matrix` and `main_job` use
//! `scale` and `peer`. All other modules are below them and know no command.

#![forbid(unsafe_code)]

pub mod artifacts;
pub mod bench;
pub mod child;
pub mod counter;
pub mod firecracker;
pub mod host;
pub mod host_socket;
pub mod leaks;
pub mod machine;
pub mod main_job;
pub mod matrix;
pub mod output;
pub mod peer;
pub mod report_files;
pub mod scale;
