//! The matrix: the same cycles with each fix switched off on its own. A cell is one combination.
//!
//! What a cell must show, and whether it does, is decided in `judge`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::cycle::AttemptOutcome;
use super::phases::to_the_microsecond;
use super::subject::PortPolicy;
use super::verdict::Flatness;

/// All cells of one matrix run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Matrix {
    /// Cycles requested in each cell.
    pub cycles_per_cell: u32,
    /// In the order in which they ran.
    pub cells: Vec<Cell>,
}

/// What distinguishes a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CellKey {
    /// Which guest-init runs.
    pub guest: GuestKind,
    /// How local ports are chosen.
    pub port_policy: PortPolicy,
    /// Whether saved pairs are evicted before the transport reset.
    pub eviction: bool,
    /// Whether the long-lived monitor connects before the status check.
    pub monitor_first: bool,
}

impl CellKey {
    /// Which connection is opened first after a resume.
    pub fn first_connection(self) -> &'static str {
        if self.monitor_first {
            "monitor"
        } else {
            "status"
        }
    }
}

impl fmt::Display for CellKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} guest, {} ports, eviction {}, {} first",
            self.guest.name(),
            self.port_policy.name(),
            on_or_off(self.eviction),
            self.first_connection(),
        )
    }
}

/// A switch in a word.
pub fn on_or_off(switch: bool) -> &'static str {
    if switch { "on" } else { "off" }
}

/// Which guest-init runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestKind {
    /// Serves its long-lived connection with a plain read loop, which a transport reset does not wake.
    Leaky,
    /// Closes the connections that a resume has reset.
    Fixed,
}

impl GuestKind {
    /// The name that reports and tables use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leaky => "leaky",
            Self::Fixed => "fixed",
        }
    }
}

/// What a cell must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expectation {
    /// A fix is on: latency stays flat.
    Flat,
    /// No fix is on: attempts grow by about one per cycle and latency rises.
    Rising,
    /// Depends on luck; recorded only.
    Either,
}

impl Expectation {
    /// The name that reports and tables use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Rising => "rising",
            Self::Either => "either",
        }
    }
}

/// What a cell showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellVerdict {
    /// Latency stayed flat.
    Flat,
    /// Latency rose.
    Rising,
    /// Too few cycles, or a check failed.
    Undecided,
}

impl CellVerdict {
    /// The name that reports and tables use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Rising => "rising",
            Self::Undecided => "undecided",
        }
    }
}

/// One combination and what it showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Which combination.
    #[serde(flatten)]
    pub key: CellKey,
    /// Median resume of the first tenth of the cycles.
    pub resume_p50_first_decile_ms: Option<f64>,
    /// Median resume of the last tenth.
    pub resume_p50_last_decile_ms: Option<f64>,
    /// Slope, interval and reason.
    pub flatness: Flatness,
    /// Most readiness attempts that one resume took.
    pub attempts_max: u32,
    /// Theil-Sen slope of the attempts.
    pub attempts_per_cycle: Option<f64>,
    /// All attempts by how they ended.
    pub attempts_by_outcome: BTreeMap<AttemptOutcome, u64>,
    /// Sockets open in the guest at the end beyond those open after the first cycle.
    pub vsocks_leaked: Option<u32>,
    /// What it showed.
    pub verdict: CellVerdict,
    /// What it must show.
    pub expected: Expectation,
    /// The series behind the figures.
    pub cycles: Vec<CellCycle>,
}

/// The part of a cycle that a cell records.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CellCycle {
    /// From 1.
    pub cycle: u32,
    /// As in [`super::Cycle`].
    #[serde(serialize_with = "to_the_microsecond")]
    pub suspend_ms: f64,
    /// As in [`super::Cycle`].
    #[serde(serialize_with = "to_the_microsecond")]
    pub resume_ms: f64,
    /// Readiness attempts of the resume.
    pub attempts: u32,
    /// As in [`super::Cycle`].
    #[serde(default)]
    pub guest_open_vsocks: Option<u32>,
}
