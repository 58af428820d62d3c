//! Saves onto a file system that is really full.
//!
//! Needs small file systems of its own, so root. Where they cannot be mounted, the tests are
//! ignored, with the reason.

#![expect(clippy::unwrap_used, reason = "a test that can't continue fails")]

#[allow(dead_code, reason = "shared with the tests of images")]
#[path = "../image/fixture.rs"]
mod fixture;
mod save;
#[path = "../support/small_disk.rs"]
mod small_disk;

use std::process::ExitCode;

use trials::{Arguments, ignore_if, trials};

fn main() -> ExitCode {
    let on_tmpfs = trials![
        save::a_booted_machine_outlives_a_full_disk,
        save::summing_up_sparse_chunks_takes_no_room_on_tmpfs,
    ];
    let on_ext4 = trials![
        save::a_resumed_machine_outlives_a_full_disk,
        save::a_machine_on_a_full_disk_can_be_saved_elsewhere,
    ];
    let mut all = ignore_if(small_disk::reason_against_tmpfs().as_deref(), on_tmpfs);
    all.extend(ignore_if(
        small_disk::reason_against_ext4().as_deref(),
        on_ext4,
    ));
    trials::run(&Arguments::from_args(), all).exit_code()
}
