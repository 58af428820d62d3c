//! What the records mean: whether latency stayed flat, and what a cell of the matrix and a scale
//! run must show.
//!
//! Rules are pure functions on records. How records are made is left to `drive`, how verdicts look
//! to `render`.

mod matrix;
mod report;
mod scale;
mod verdict;

pub use matrix::CellMismatch;
pub use scale::ScaleMismatch;
pub use verdict::{
    DECILE_RATIO_BOUND, Judgement, MIN_CYCLES, RISE_BOUND_PERCENT, Rule, judge, rules_in_words,
};
