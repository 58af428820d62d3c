//! That a supervisor loses no machine: resources that run out, many machines, and a long random run
//! with crashes. Processes and limits are real; only the VMMs are fakes.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "parts of tests"
)]

mod exhaustion;
mod scale;
mod site;
mod soak;
#[path = "../support/mod.rs"]
mod support;
mod usage;
