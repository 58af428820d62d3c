//! The matrix: the same cycles with each fix switched off on its own.
//!
//! A cell is one combination; [`Expectation`] says what it must show. The disease must appear
//! where no fix is on, or the matrix proves nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

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

    /// What it shows as a whole, in a sentence.
    pub fn in_words(&self) -> &'static str {
        match (self.as_expected(), self.includes_the_disease()) {
            (true, true) => "as expected: the disease shows where no fix is on, and nowhere else",
            (true, false) => {
                "as expected, but the cell that must show the disease was left out, so it proves \
                 nothing yet"
            }
            (false, _) => "NOT as expected: see the cells marked NO",
        }
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

/// Attempts that the disease must add per cycle: it adds one, and jitter in the reconnection
/// order costs or adds some. More than that is another disease.
const DISEASE_ATTEMPTS_PER_CYCLE: RangeInclusive<f64> = 0.5..=1.5;

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

    /// Whether it shows what it must.
    pub fn as_expected(&self) -> bool {
        self.objection().is_none()
    }

    /// What it must show and does not. The disease is all of three: latency rises, attempts with
    /// it, and sockets are left over; without the leak, something else is slow.
    pub fn objection(&self) -> Option<Objection> {
        self.latency_objection().or_else(|| self.leak_objection())
    }

    fn latency_objection(&self) -> Option<Objection> {
        match self.expected {
            // Luck decides between flat and rising, but not over a run that ended early.
            Expectation::Either => {
                (self.verdict == CellVerdict::Undecided).then_some(Objection::Undecided)
            }
            Expectation::Flat if self.verdict == CellVerdict::Flat => None,
            Expectation::Flat => Some(Objection::NotFlat),
            Expectation::Rising if self.verdict != CellVerdict::Rising => {
                Some(Objection::NotRising)
            }
            Expectation::Rising => {
                let about_one = self
                    .attempts_per_cycle
                    .is_some_and(|slope| DISEASE_ATTEMPTS_PER_CYCLE.contains(&slope));
                (!about_one).then_some(Objection::Attempts)
            }
        }
    }

    /// A leaky guest leaves one socket per cycle where nothing evicts it; the first cycle is the
    /// yardstick and leaves none.
    fn leak_objection(&self) -> Option<Objection> {
        let Some(leaked) = self.vsocks_leaked else {
            return Some(Objection::Untold);
        };
        if self.key.guest == GuestKind::Fixed || self.key.eviction {
            return (leaked > 0).then_some(Objection::Leaks);
        }
        let cycles = u32::try_from(self.cycles.len()).unwrap_or(u32::MAX);
        let wanted = cycles.saturating_sub(1);
        if self.expected == Expectation::Either {
            // A monitor that comes second collides with its own leaked pairs, and may not be
            // connected by the time of the next suspend: then there is nothing to leak.
            return (leaked == 0).then_some(Objection::NoLeak { wanted });
        }
        // A connection of the moment may be counted at either end.
        let tolerance = (wanted / 10).max(1);
        let about = leaked.abs_diff(wanted) <= tolerance && (leaked > 0 || wanted == 0);
        (!about).then_some(Objection::NoLeak { wanted })
    }
}

/// What a cell must show and does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection {
    /// Either will do, but there is no verdict.
    Undecided,
    /// Latency must stay flat.
    NotFlat,
    /// Latency must rise.
    NotRising,
    /// It rises, but attempts do not rise as leaked pairs make them.
    Attempts,
    /// The guest did not tell its open sockets.
    Untold,
    /// Sockets are left over.
    Leaks,
    /// The leaky guest did not leak.
    NoLeak {
        /// Sockets that must be left over, about.
        wanted: u32,
    },
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undecided => f.write_str("must come to a verdict"),
            Self::NotFlat => f.write_str("must be flat"),
            Self::NotRising => f.write_str("must show the disease"),
            Self::Attempts => f.write_str("attempts must rise by about one per cycle"),
            Self::Untold => f.write_str("the guest must tell its sockets"),
            Self::Leaks => f.write_str("no socket may be left over"),
            Self::NoLeak { wanted } => write!(f, "about {wanted} sockets must be left over"),
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
    use crate::phases::Phases;
    use crate::record::{Attempt, Cycle, SubjectDescription};
    use crate::run::RunEnd;

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

    /// A cell whose resume n takes `attempts(n)`, each of 10 ms, and leaves `leak` sockets.
    fn cell(key: CellKey, leak: u32, attempts: impl Fn(u32) -> u32) -> Cell {
        let attempt = Attempt {
            local_port: None,
            outcome: AttemptOutcome::Ok,
            ms: 10.0,
        };
        let cycle = |number| {
            let count = attempts(number);
            // A little noise, without which medians of few values tie.
            let ms = 10.0 * f64::from(count) + f64::from(number % 3) / 10.0;
            Cycle {
                cycle: number,
                suspend_ms: 5.0,
                resume_ms: ms,
                suspend_phases_ms: Phases::default(),
                resume_phases_ms: Phases::default(),
                readiness: vec![attempt.clone(); usize::try_from(count).unwrap()],
                guest_open_vsocks: Some(2 + leak * number),
                image_bytes_written: None,
            }
        };
        let run = Run {
            subject: SubjectDescription::default(),
            cycles_wanted: 40,
            cycles: (1..=40).map(cycle).collect(),
            end: RunEnd::Complete,
            vsocks_before: Some(2),
        };
        Cell::of_run(key, &run)
    }

    fn sick() -> CellKey {
        key(GuestKind::Leaky, PortPolicy::Fixed, false)
    }

    #[test]
    fn the_disease_is_rising_latency_rising_attempts_and_a_leak() {
        assert_eq!(cell(sick(), 1, |n| n).objection(), None);
    }

    #[test]
    fn a_sick_cell_that_stays_flat_is_not_as_expected() {
        let flat = cell(sick(), 1, |_| 3);
        assert_eq!(flat.objection(), Some(Objection::NotRising));
    }

    #[test]
    fn a_sick_cell_whose_attempts_rise_otherwise_than_by_one_is_not_as_expected() {
        let steep = cell(sick(), 1, |n| 2 * n);
        assert_eq!(steep.objection(), Some(Objection::Attempts));
        let slow = cell(sick(), 1, |n| 1 + n / 3);
        assert_eq!(slow.objection(), Some(Objection::Attempts));
    }

    #[test]
    fn a_healthy_cell_that_rises_is_not_as_expected() {
        let rising = cell(key(GuestKind::Fixed, PortPolicy::Fixed, false), 0, |n| n);
        assert_eq!(rising.objection(), Some(Objection::NotFlat));
    }

    #[test]
    fn a_leaky_cell_without_a_leak_is_not_as_expected_whatever_its_latency() {
        let wanted = Some(Objection::NoLeak { wanted: 39 });
        assert_eq!(cell(sick(), 0, |n| n).objection(), wanted);
        let random = key(GuestKind::Leaky, PortPolicy::Random, false);
        assert_eq!(cell(random, 0, |_| 1).objection(), wanted);
        assert_eq!(cell(random, 2, |_| 1).objection(), wanted);
        assert_eq!(cell(random, 1, |_| 1).objection(), None);
    }

    #[test]
    fn a_cell_left_to_luck_must_come_to_its_end_and_leak() {
        let lucky = CellKey {
            monitor_first: false,
            ..sick()
        };
        assert_eq!(cell(lucky, 1, |_| 1).objection(), None);
        assert_eq!(cell(lucky, 1, |n| n).objection(), None);
        let wanted = Some(Objection::NoLeak { wanted: 39 });
        assert_eq!(cell(lucky, 0, |_| 1).objection(), wanted);
        let mut seldom = cell(lucky, 1, |_| 1);
        seldom.vsocks_leaked = Some(7);
        assert_eq!(seldom.objection(), None);
        let mut broken = cell(lucky, 1, |_| 1);
        broken.verdict = CellVerdict::Undecided;
        assert_eq!(broken.objection(), Some(Objection::Undecided));
    }

    #[test]
    fn a_socket_left_over_in_spite_of_a_fix_is_not_as_expected() {
        let evicted = key(GuestKind::Leaky, PortPolicy::Random, true);
        assert_eq!(cell(evicted, 0, |_| 1).objection(), None);
        let leaking = cell(evicted, 1, |_| 1);
        assert_eq!(leaking.objection(), Some(Objection::Leaks));
    }

    #[test]
    fn a_guest_that_does_not_tell_its_sockets_proves_nothing() {
        let mut untold = cell(sick(), 1, |n| n);
        untold.vsocks_leaked = None;
        assert_eq!(untold.objection(), Some(Objection::Untold));
    }

    #[test]
    fn a_matrix_without_cells_proves_nothing() {
        assert!(!Matrix::default().as_expected());
    }
}
