//! Both sources of a resumed machine's changed pages give the right answer.
//!
//! Kernels before 6.7 have only one of them, the table; there the tests of the other, the
//! `PAGEMAP_SCAN` ioctl, are ignored, with the reason.

#![expect(clippy::unwrap_used, reason = "a test that can't continue fails")]

#[allow(dead_code, reason = "shared with the tests of images")]
#[path = "../image/fixture.rs"]
mod fixture;
mod private_pages;

use std::process::ExitCode;

use vmm::memory::MachineMemory;

use private_pages::Source;
use trials::{Arguments, Trial, ignore_if};

/// Makes a list of trials from test functions of a source.
macro_rules! trials_of {
    ($source:ident: $($name:ident),+ $(,)?) => {
        vec![$(Trial::test(
            concat!(stringify!($source), "::", stringify!($name)),
            move || {
                private_pages::$name($source);
                Ok(())
            },
        )),+]
    };
    ($source:ident) => {
        trials_of!($source:
            an_untouched_mapping_has_no_private_pages,
            pages_that_were_only_read_are_not_private,
            written_pages_are_private_whether_they_were_data_or_holes,
            a_page_written_with_what_it_held_counts_as_changed,
            more_runs_than_one_answer_holds_are_all_found,
            it_finds_what_was_written_and_nothing_that_was_read,
        )
    };
}

fn main() -> ExitCode {
    let table: Source = MachineMemory::private_pages_by_table;
    let scan: Source = MachineMemory::private_pages_by_scan;
    let mut all = trials_of!(table);
    all.extend(ignore_if(reason_against_scan(), trials_of!(scan)));
    trials::run(&Arguments::from_args(), all).exit_code()
}

fn reason_against_scan() -> Option<&'static str> {
    let memory = MachineMemory::anonymous(fixture::MEMORY_MIB).unwrap();
    match memory.private_pages_by_scan() {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
            Some("needs PAGEMAP_SCAN (Linux 6.7)")
        }
        _ => None,
    }
}
