//! How the records are made: the loop that suspends and resumes, the checks after each cycle, and
//! the subjects that can be put through it.
//!
//! Nothing here judges latencies: that is left to `judge`.

mod check;
mod host;
mod interruption;
mod machine;
mod resources;
mod run;
mod subject;

pub use check::{CycleError, LeftoverVsocks};
pub use interruption::Interruption;
pub use machine::{MachineError, MachineSubject, recorded_timing};
pub use run::{Observer, RunOptions, Silent, run_cycles};
pub use subject::{GuestObservation, ResumeOutcome, Subject, SuspendOutcome};
