//! The matrix: the same cycles with each fix switched off on its own.
//!
//! A cell is one combination; [`Expectation`] says what it must show. The disease must appear
//! where no fix is on, or the matrix proves nothing.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::record::{AttemptOutcome, Flatness};
use crate::run::Run;
use crate::statistics::{decile_medians, theil_sen_by_cycle};
use crate::verdict::{MIN_CYCLES, judge};

/// All cells of one matrix run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Matrix {
    /// Cycles wanted in each cell.
    pub cycles_per_cell: u32,
    /// In the order in which they ran.
    pub cells: Vec<Cell>,
}

impl Matrix {
    /// Whether every cell shows what it must.
    pub fn as_expected(&self) -> bool {
        !self.cells.is_empty() && self.cells.iter().all(Cell::as_expected)
    }

    /// Whether a cell that must show the disease was run at all.
    pub fn includes_the_disease(&self) -> bool {
        self.cells
            .iter()
            .any(|cell| cell.expected == Expectation::Rising)
    }
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
    /// What this cell must show.
    pub fn expectation(self) -> Expectation {
        let no_fix = self.guest == GuestKind::Leaky
            && self.port_policy == PortPolicy::Fixed
            && !self.eviction;
        match (no_fix, self.monitor_first) {
            (false, _) => Expectation::Flat,
            (true, true) => Expectation::Rising,
            // The status check then gets the first port, which it has closed itself: whether the
            // guest leaks, the machine may be lucky.
            (true, false) => Expectation::Either,
        }
    }
}

impl fmt::Display for CellKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let eviction = if self.eviction { "on" } else { "off" };
        let first = if self.monitor_first {
            "monitor"
        } else {
            "status"
        };
        let (guest, policy) = (self.guest.name(), self.port_policy.name());
        write!(
            f,
            "{guest} guest, {policy} ports, eviction {eviction}, {first} first"
        )
    }
}

/// Which guest-init runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestKind {
    /// Serves its long-lived connection with a plain read loop, which a reset does not wake.
    Leaky,
    /// Closes what a resume has reset.
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

/// How the VMM chooses local vsock ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortPolicy {
    /// From 2^30 upward after every restore.
    Fixed,
    /// On from the saved last port.
    Continue,
    /// From a port drawn at every start and restore.
    Random,
}

impl PortPolicy {
    /// The name that reports, tables and flags use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Continue => "continue",
            Self::Random => "random",
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
    /// Sockets more than after the first cycle that are open in the guest at the end.
    pub vsocks_leaked: Option<u32>,
    /// What it showed.
    pub verdict: CellVerdict,
    /// What it must show.
    pub expected: Expectation,
    /// The series behind the figures.
    pub cycles: Vec<CellCycle>,
}

/// What a cell keeps of a cycle.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CellCycle {
    /// From 1.
    pub cycle: u32,
    /// As in the main records.
    #[serde(serialize_with = "crate::phases::to_the_microsecond")]
    pub suspend_ms: f64,
    /// As in the main records.
    #[serde(serialize_with = "crate::phases::to_the_microsecond")]
    pub resume_ms: f64,
    /// Readiness attempts of the resume.
    pub attempts: u32,
    /// As in the main records.
    #[serde(default)]
    pub guest_open_vsocks: Option<u32>,
}

/// Attempts that the disease must add per cycle, at least: it adds one, and jitter in the
/// reconnection order costs some.
const DISEASE_ATTEMPTS_PER_CYCLE: f64 = 0.5;

impl Cell {
    /// The cell of `key` from its run.
    pub fn of_run(key: CellKey, run: &Run) -> Self {
        let resume_ms = run.resume_ms();
        let flatness = judge(&resume_ms, run.failed_check()).flatness;
        let decided = run.failed_check().is_none() && resume_ms.len() >= MIN_CYCLES;
        let verdict = match (decided, flatness.flat) {
            (false, _) => CellVerdict::Undecided,
            (true, true) => CellVerdict::Flat,
            (true, false) => CellVerdict::Rising,
        };
        let deciles = decile_medians(&resume_ms);
        let attempts: Vec<f64> = run
            .cycles
            .iter()
            .map(|cycle| f64::from(cycle.attempts()))
            .collect();
        Self {
            key,
            resume_p50_first_decile_ms: deciles.map(|(first, _)| first),
            resume_p50_last_decile_ms: deciles.map(|(_, last)| last),
            flatness,
            attempts_max: run
                .cycles
                .iter()
                .map(|cycle| cycle.attempts())
                .max()
                .unwrap_or(0),
            attempts_per_cycle: theil_sen_by_cycle(&attempts).map(|line| line.slope),
            attempts_by_outcome: by_outcome(run),
            vsocks_leaked: leaked(run),
            verdict,
            expected: key.expectation(),
            cycles: run.cycles.iter().map(cell_cycle).collect(),
        }
    }

    /// Whether it shows what it must. The disease is both: latency rises, and attempts with it.
    pub fn as_expected(&self) -> bool {
        match self.expected {
            Expectation::Flat => self.verdict == CellVerdict::Flat,
            Expectation::Rising => {
                self.verdict == CellVerdict::Rising
                    && self
                        .attempts_per_cycle
                        .is_some_and(|slope| slope >= DISEASE_ATTEMPTS_PER_CYCLE)
            }
            Expectation::Either => true,
        }
    }
}

fn by_outcome(run: &Run) -> BTreeMap<AttemptOutcome, u64> {
    let mut counts = BTreeMap::new();
    for attempt in run.cycles.iter().flat_map(|cycle| &cycle.readiness) {
        *counts.entry(attempt.outcome).or_insert(0) += 1;
    }
    counts
}

fn leaked(run: &Run) -> Option<u32> {
    let first = run.cycles.first()?.guest_open_vsocks?;
    let last = run.cycles.last()?.guest_open_vsocks?;
    Some(last.saturating_sub(first))
}

fn cell_cycle(cycle: &crate::record::Cycle) -> CellCycle {
    CellCycle {
        cycle: cycle.cycle,
        suspend_ms: cycle.suspend_ms,
        resume_ms: cycle.resume_ms,
        attempts: cycle.attempts(),
        guest_open_vsocks: cycle.guest_open_vsocks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(guest: GuestKind, port_policy: PortPolicy, eviction: bool) -> CellKey {
        CellKey {
            guest,
            port_policy,
            eviction,
            monitor_first: true,
        }
    }

    #[test]
    fn only_the_cell_without_any_fix_must_rise() {
        use {GuestKind::*, PortPolicy::*};
        let rising = key(Leaky, PortPolicy::Fixed, false);
        assert_eq!(rising.expectation(), Expectation::Rising);
        assert_eq!(
            CellKey {
                monitor_first: false,
                ..rising
            }
            .expectation(),
            Expectation::Either
        );
        assert_eq!(
            key(Leaky, PortPolicy::Fixed, true).expectation(),
            Expectation::Flat
        );
        assert_eq!(key(Leaky, Continue, false).expectation(), Expectation::Flat);
        assert_eq!(key(Leaky, Random, false).expectation(), Expectation::Flat);
        assert_eq!(
            key(GuestKind::Fixed, PortPolicy::Fixed, false).expectation(),
            Expectation::Flat
        );
    }

    #[test]
    fn a_matrix_without_cells_proves_nothing() {
        assert!(!Matrix::default().as_expected());
    }
}
