//! Chained suspend/resume cycles: running them, recording them, judging them, showing them.
//!
//! A [`Subject`] is anything that can be suspended and resumed. [`run_cycles`] drives one through
//! a chain of cycles, checks after each that the guest lived on, and returns the records; a
//! [`Report`] holds them together with the verdict on whether resume latency stayed flat, and is
//! rendered as JSON, CSV, plain text tables and one HTML page.
//!
//! Only [`MachineSubject`] knows the Machines API. Nothing here prints, and no file is opened but
//! the report that [`load`] is given.

mod csv;
mod html;
mod load;
mod machine;
mod matrix;
mod phases;
mod record;
mod run;
mod scale;
mod statistics;
mod subject;
mod table;
mod verdict;

pub use csv::cycles_csv;
pub use html::report_page;
pub use load::{LoadError, MAX_CYCLES, MAX_REPORT_BYTES, Problem, load, parse};
pub use machine::{MachineError, MachineSubject};
pub use matrix::{
    Cell, CellCycle, CellKey, CellVerdict, Expectation, GuestKind, Matrix, Objection, PortPolicy,
};
pub use phases::{Phases, UNATTRIBUTED};
pub use record::{
    Attempt, AttemptOutcome, Cycle, FailedCheck, Flatness, Host, KvmKind, Peer, Report, RunConfig,
    SCHEMA, SubjectDescription,
};
pub use run::{Check, LeftoverVsocks, Observer, Run, RunEnd, RunOptions, Silent, run_cycles};
pub use scale::{ScaleObjection, ScaleResume, ScaleRun};
pub use statistics::{
    Quantiles, Slope, TWO_SIDED_95, decile_medians, median, quantile, scatter, theil_sen,
    theil_sen_by_cycle,
};
pub use subject::{GuestObservation, ResumeOutcome, Subject, SuspendOutcome};
pub use table::{scale_table, tables_of};
pub use verdict::{
    DECILE_RATIO_BOUND, Judgement, MIN_CYCLES, RISE_BOUND_PERCENT, Rule, judge, rules_in_words,
};
