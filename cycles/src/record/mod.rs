//! The records: exactly what `report.json` holds, as plain data.
//!
//! Numbers are milliseconds and bytes, as the names say. Nothing here measures, judges or renders.
//! What a file must satisfy beyond these types is checked in `load`; every other module here knows
//! only the ones that its own records contain.

mod clock;
mod cycle;
mod limits;
mod load;
mod matrix;
mod phases;
mod proof;
mod report;
mod resources;
mod run;
mod scale;
mod subject;
mod verdict;

pub use clock::Clock;
pub use cycle::{Attempt, AttemptOutcome, Cycle};
pub use limits::MAX_CYCLES;
pub use load::{LoadError, MAX_REPORT_BYTES, Problem, load, parse};
pub use matrix::{
    Cell, CellCycle, CellKey, CellVerdict, Expectation, GuestKind, Matrix, on_or_off,
};
pub use phases::{Phases, UNATTRIBUTED};
pub use proof::{PromiseOutcome, PromiseResult, Proof, ProofPart};
pub use report::{Host, KvmKind, OLDEST_SCHEMA, Peer, Report, RunConfig, SCHEMA, Setting};
pub use resources::Resources;
pub use run::{Run, RunEnd};
pub use scale::{ScaleResume, ScaleRun};
pub use subject::{PortPolicy, SubjectDescription};
pub use verdict::{FailedCheck, Flatness, Outcome, RiseBound, Rule, Unit};

pub(crate) use cycle::count_by_outcome;
pub(crate) use limits::is_usable_duration;
pub(crate) use phases::names_in_order;
