//! The verdict on a run, as data. `judge` reaches it.

use serde::{Deserialize, Serialize};

/// The verdict on a series of resume latencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flatness {
    /// Theil-Sen slope; absent below two cycles.
    pub slope_ms_per_cycle: Option<f64>,
    /// Its 95 % confidence interval.
    pub ci95: Option<[f64; 2]>,
    /// Median of the last tenth of the cycles divided by the median of the first tenth.
    pub last_to_first_decile_ratio: Option<f64>,
    /// Whether the series is flat.
    pub flat: bool,
    /// Why, in one sentence.
    pub reason: String,
}

impl Flatness {
    /// The verdict in a word or two.
    pub fn in_words(&self) -> &'static str {
        if self.flat { "flat" } else { "not flat" }
    }
}

/// A check on the guest that failed and ended the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCheck {
    /// The cycle in which it failed; 0 is before the first.
    pub cycle: u32,
    /// Stable name of the check.
    pub check: String,
    /// What was expected and what was found.
    pub message: String,
}
