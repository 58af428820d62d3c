//! What a supervisor must get over without losing a machine: resources that run out, and a long
//! random run with crashes. Real processes, real limits; only the VMMs are doubles.

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
