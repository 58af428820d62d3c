//! What the records mean: whether anything grows, and what a cell of the matrix and a scale run must
//! show.
//!
//! Rules are pure functions on records. How records are made is left to `drive`, how verdicts look
//! to `render`.

mod looks;
mod matrix;
mod report;
mod resources;
mod rules;
mod scale;
mod verdict;
mod words;

pub use looks::looks;
pub use matrix::CellMismatch;
pub use scale::ScaleMismatch;
pub use verdict::{Judgement, Line, MIN_CYCLES, judge, rules_in_words};

pub(crate) use resources::{amount, resource_in_words};
