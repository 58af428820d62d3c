//! Promises about the disks of the host, shown on a virtual KVM host that has some: a supervisor runs on one
//! of them, and on it a machine that writes to its own disk.
//!
//! Needs QEMU and, the first time, the network for Debian's packages; without `mmdebstrap` or QEMU the tests
//! are ignored, with the reason.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what tests may do, their helpers may"
)]

mod frozen_disk;
mod power_cut;
mod stage;

use std::process::ExitCode;

use kvm_host::{debian, qemu};
use trials::{Arguments, ignore_if, trials};

fn main() -> ExitCode {
    let all = trials![
        power_cut::acknowledged_writes_of_a_guest_survive_power_cuts,
        power_cut::old_memory_never_runs_over_a_newer_disk,
        frozen_disk::a_disk_that_does_not_answer_fails_the_suspend_and_the_guest_runs_on,
    ];
    let no_qemu = qemu::check_installed().err().map(|error| error.to_string());
    let no_debian = debian::check_installed()
        .err()
        .map(|error| error.to_string());
    let all = ignore_if(no_qemu.or(no_debian).as_deref(), all);
    trials::run(&Arguments::from_args(), all).exit_code()
}
