//! The harness on real guests: the main job, the matrix, the benchmarks, and the parts that tests share.
//!
//! It is a library so that `tests/promises` drives hosts and machines in the same way as `mctl-e2e`.
//! It knows the Machines API and real binaries, but no internals of other crates.
//!
//! `main_job`, `matrix`, `scale` and `bench` are the commands. What they measure runs in processes of
//! their own, in virtual hosts where this machine's KVM cannot run Linux: `measure` starts chains of
//! cycles and collects their events, `run_here` and `bench_here` are the commands inside.

#![forbid(unsafe_code)]

pub mod artifacts;
pub mod bench;
pub mod bench_here;
pub mod child;
pub mod counter;
pub mod disk;
pub mod ending;
pub mod figures;
pub mod host;
pub mod host_socket;
pub mod kvm_place;
pub mod kvm_process;
pub mod leaks;
pub mod ledger;
pub mod machine;
pub mod main_job;
pub mod matrix;
pub mod measure;
pub mod output;
pub mod peer;
pub mod proof;
pub mod report_files;
pub mod run_event;
pub mod run_here;
pub mod scale;
pub mod upgrade;
pub mod upgrade_here;
pub mod work;
