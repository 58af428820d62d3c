//! Chained suspend/resume cycles: running them, recording them, judging them, showing them.
//!
//! A [`Subject`] is anything that can be suspended and resumed. [`run_cycles`] puts one through a
//! chain of cycles, checks after each that the guest survived, and returns the records. A
//! [`Report`] holds them together with the verdict on whether resume latency stayed flat; it is
//! rendered as JSON, CSV, plain text tables and one HTML page.
//!
//! The layers, from the bottom. Each imports only those before it:
//!
//! - `statistics` and `numbers`: pure functions on numbers.
//! - `record`: plain data, exactly what `report.json` holds, and how it is read from a file.
//!   A further observable of a cycle is a field here.
//! - `judge`: what the data means: the verdict on a series, what a cell of the matrix and a scale
//!   run must show. A rule, and series to test it with, belong here.
//! - `drive`: how the data is made: the loop, the checks after each cycle, the subjects.
//! - `render`: how the data is shown.
//!
//! Only [`MachineSubject`] knows the Machines API. Nothing here prints, and the only file that is
//! opened is the report that [`load`] is given.

mod drive;
mod judge;
mod numbers;
mod record;
mod render;
mod statistics;

pub use drive::{
    CycleError, GuestObservation, Interruption, LeftoverVsocks, MachineError, MachineSubject,
    Observer, ResumeOutcome, RunOptions, Silent, Subject, SuspendOutcome, recorded_timing,
    run_cycles,
};
pub use judge::{
    CellMismatch, Judgement, Line, MIN_CYCLES, ScaleMismatch, judge, looks, rules_in_words,
};
pub use record::{
    Attempt, AttemptOutcome, Cell, CellCycle, CellKey, CellVerdict, Clock, Cycle, Expectation,
    FailedCheck, Flatness, GuestKind, Host, KvmKind, LoadError, MAX_CYCLES, MAX_REPORT_BYTES,
    Matrix, OLDEST_SCHEMA, Outcome, Peer, Phases, PortPolicy, Problem, PromiseOutcome,
    PromiseResult, Proof, ProofPart, Report, Resources, RiseBound, Rule, Run, RunConfig, RunEnd,
    SCHEMA, ScaleResume, ScaleRun, Setting, SubjectDescription, UNATTRIBUTED, Unit, load,
    on_or_off, parse,
};
pub use render::{cycles_csv, proof_page, report_page, scale_table, tables_of};
pub use statistics::{
    Quantiles, Slope, TWO_SIDED_95, decile_medians, median, median_at_least, quantile, scatter,
    theil_sen, theil_sen_by_cycle,
};
