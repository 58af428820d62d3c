//! The verdict on a run, as data. `judge` reaches it.

use serde::{Deserialize, Serialize};

/// What a rule, or all of them together, say about growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Growth as large as the bound is excluded.
    Flat,
    /// Growth beyond the bound is certain.
    Rising,
    /// Neither can be said of so few cycles with so much noise, or the run did not complete.
    Undecided,
}

impl Outcome {
    /// The outcome in a word, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Rising => "rising",
            Self::Undecided => "undecided",
        }
    }

    /// Of several together: rising if one is, else undecided if one is. Flat if there are none.
    pub fn of_all(outcomes: impl IntoIterator<Item = Self>) -> Self {
        outcomes
            .into_iter()
            .fold(Self::Flat, |all, one| match (all, one) {
                (Self::Rising, _) | (_, Self::Rising) => Self::Rising,
                (Self::Undecided, _) | (_, Self::Undecided) => Self::Undecided,
                (Self::Flat, Self::Flat) => Self::Flat,
            })
    }
}

/// The verdict on a run. Percentages are of the median resume and, unless they say otherwise, over
/// the whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredFlatness")]
pub struct Flatness {
    /// All rules together.
    pub outcome: Outcome,
    /// The rise of resume latency by its trend: the rate after the warm-up, times all cycles.
    pub rise_percent: Option<f64>,
    /// Lower end of its interval.
    pub rise_lower_percent: Option<f64>,
    /// Upper end of its interval.
    pub rise_upper_percent: Option<f64>,
    /// The smallest rise that this run would have found in nine of ten cases.
    pub detectable_rise_percent: Option<f64>,
    /// What the interval is compared with.
    pub bound: Option<RiseBound>,
    /// About how many cycles the noise asks for, where the outcome is undecided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cycles_needed: Option<u32>,
    /// The trend.
    pub slope_ms_per_cycle: Option<f64>,
    /// Its 95 % confidence interval.
    pub ci95: Option<[f64; 2]>,
    /// Median of the last tenth of the cycles divided by the median of the first tenth.
    pub last_to_first_decile_ratio: Option<f64>,
    /// The numbers of cycles after which the run was judged, the last one included.
    pub looks: Vec<u32>,
    /// Each rule as it was applied to resume latency and to each resource.
    pub rules: Vec<Rule>,
    /// Why, in one sentence.
    pub reason: String,
}

/// The bound on the rise of resume latency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RiseBound {
    /// Over the run, in percent of the median.
    pub percent: f64,
    /// The same in milliseconds.
    pub ms: f64,
    /// Over 10,000 cycles, in percent of the median.
    pub percent_in_10000_cycles: f64,
    /// The same in milliseconds.
    pub ms_in_10000_cycles: f64,
}

/// One rule as it was applied to one series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// What was judged: `resume`, or the name of a resource.
    pub series: String,
    /// Which rule.
    pub name: String,
    /// What must be true, in words.
    pub requirement: String,
    /// What was found, in words.
    pub found: String,
    /// The figure found.
    pub value: f64,
    /// Lower end of its interval.
    pub lower: f64,
    /// Upper end of its interval.
    pub upper: f64,
    /// The bound that the interval is compared with.
    pub bound: f64,
    /// The unit of all four.
    pub unit: Unit,
    /// What the rule says.
    pub outcome: Outcome,
}

/// The unit of a rule's figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Percent of the median, over the run.
    Percent,
    /// Percentage points between the halves of the run.
    PercentagePoints,
    /// Things, over the run.
    Count,
    /// Bytes, over the run.
    Bytes,
}

impl Flatness {
    /// A verdict on nothing: undecided for `reason`.
    pub fn undecided(reason: &str) -> Self {
        Self {
            outcome: Outcome::Undecided,
            rise_percent: None,
            rise_lower_percent: None,
            rise_upper_percent: None,
            detectable_rise_percent: None,
            bound: None,
            cycles_needed: None,
            slope_ms_per_cycle: None,
            ci95: None,
            last_to_first_decile_ratio: None,
            looks: Vec::new(),
            rules: Vec::new(),
            reason: reason.to_owned(),
        }
    }

    /// Whether the outcome is flat.
    pub fn is_flat(&self) -> bool {
        self.outcome == Outcome::Flat
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

/// A verdict as files hold it: those of schema 1 say only whether it is flat, and what was not flat
/// may have been either.
#[derive(Deserialize)]
struct StoredFlatness {
    outcome: Option<Outcome>,
    #[serde(default)]
    flat: bool,
    rise_percent: Option<f64>,
    rise_lower_percent: Option<f64>,
    rise_upper_percent: Option<f64>,
    detectable_rise_percent: Option<f64>,
    bound: Option<RiseBound>,
    cycles_needed: Option<u32>,
    slope_ms_per_cycle: Option<f64>,
    ci95: Option<[f64; 2]>,
    last_to_first_decile_ratio: Option<f64>,
    #[serde(default)]
    looks: Vec<u32>,
    #[serde(default)]
    rules: Vec<Rule>,
    reason: String,
}

impl From<StoredFlatness> for Flatness {
    fn from(stored: StoredFlatness) -> Self {
        let outcome = stored.outcome.unwrap_or(if stored.flat {
            Outcome::Flat
        } else {
            Outcome::Undecided
        });
        Self {
            outcome,
            rise_percent: stored.rise_percent,
            rise_lower_percent: stored.rise_lower_percent,
            rise_upper_percent: stored.rise_upper_percent,
            detectable_rise_percent: stored.detectable_rise_percent,
            bound: stored.bound,
            cycles_needed: stored.cycles_needed,
            slope_ms_per_cycle: stored.slope_ms_per_cycle,
            ci95: stored.ci95,
            last_to_first_decile_ratio: stored.last_to_first_decile_ratio,
            looks: stored.looks,
            rules: stored.rules,
            reason: stored.reason,
        }
    }
}
