//! What each cell of the matrix must show, and whether it does.
//!
//! The bug must appear where no fix is on, or the matrix proves nothing; each fix alone must be
//! enough to prevent it.
//!
//! A cell has too few cycles to exclude a slow rise, and need not: what it must tell apart is the bug
//! and its absence. So a cell is flat if its readiness attempts do not grow and its latency rises, by
//! the upper end of its interval, by less than a tenth of what the cell without any fix rises by.
//! Where that cell was not run, attempts and sockets alone decide.

use std::fmt;
use std::ops::RangeInclusive;

use super::rules::compared;
use super::verdict::judge_latencies;
use crate::record::{
    Cell, CellCycle, CellKey, CellVerdict, Clock, Cycle, Expectation, Flatness, GuestKind, Matrix,
    Outcome, PortPolicy, Run, count_by_outcome,
};
use crate::statistics::{as_float, decile_medians, theil_sen_by_cycle};

/// How much of the rise of the cell without any fix another cell may show.
const SHARE_OF_THE_BUG: f64 = 0.1;

impl Matrix {
    /// Adds the cell of `key` from its run, whose durations are of `clock`, and compares all cells
    /// with the one that must show the bug.
    pub fn add(&mut self, key: CellKey, run: &Run, clock: Clock) {
        self.cells.push(Cell::of_run(key, run, clock));
        let bug = self.bug_ms_per_cycle();
        for cell in &mut self.cells {
            cell.verdict = cell.judged(bug);
        }
    }

    /// What the cell that must show the bug rises by, if it was run and does.
    fn bug_ms_per_cycle(&self) -> Option<f64> {
        self.cells
            .iter()
            .filter(|cell| cell.expected == Expectation::Rising)
            .find(|cell| cell.verdict == CellVerdict::Rising)
            .and_then(|cell| cell.flatness.slope_ms_per_cycle)
    }

    /// Whether every cell shows what it must.
    pub fn as_expected(&self) -> bool {
        !self.cells.is_empty() && self.cells.iter().all(Cell::as_expected)
    }

    /// The result of the whole matrix in a sentence.
    pub fn in_words(&self) -> &'static str {
        match (self.as_expected(), self.includes_the_bug()) {
            (true, true) => {
                "as expected: the bug appears where no fix is on, and latency is flat wherever one is"
            }
            (true, false) => {
                "as expected, but the cell that must show the bug was not run: this proves \
                 nothing yet, and latencies were compared with nothing"
            }
            (false, _) => "NOT as expected: at least one cell does not show what it must",
        }
    }

    /// Whether a cell that must show the bug was run.
    pub fn includes_the_bug(&self) -> bool {
        self.cells
            .iter()
            .any(|cell| cell.expected == Expectation::Rising)
    }
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
            // Here the status check gets the first port, which it has closed itself. It may
            // succeed at once although the guest leaks.
            (true, false) => Expectation::Either,
        }
    }
}

/// Attempts that the bug must add per cycle. It adds one; jitter in the order of reconnection may
/// add or save some. More than that has another cause.
const BUG_ATTEMPTS_PER_CYCLE: RangeInclusive<f64> = 0.5..=1.5;

impl From<Outcome> for CellVerdict {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Flat => Self::Flat,
            Outcome::Rising => Self::Rising,
            Outcome::Undecided => Self::Undecided,
        }
    }
}

impl Cell {
    /// The cell of `key` from its run, whose durations are of `clock`, compared with no other.
    pub fn of_run(key: CellKey, run: &Run, clock: Clock) -> Self {
        let resume_ms = run.resume_ms();
        let mut flatness = judge_latencies(&resume_ms, clock, 1).flatness;
        if let Some(failed) = run.failed_check() {
            flatness = Flatness {
                rules: Vec::new(),
                reason: format!("cycle {}: {}", failed.cycle, failed.message),
                outcome: Outcome::Undecided,
                ..flatness
            };
        }
        let deciles = decile_medians(&resume_ms);
        let attempts: Vec<u32> = run.cycles.iter().map(Cycle::attempts).collect();
        let attempts_as_numbers: Vec<f64> = attempts.iter().copied().map(f64::from).collect();
        let mut cell = Self {
            key,
            resume_p50_first_decile_ms: deciles.map(|(first, _)| first),
            resume_p50_last_decile_ms: deciles.map(|(_, last)| last),
            flatness,
            attempts_max: attempts.into_iter().max().unwrap_or(0),
            attempts_per_cycle: theil_sen_by_cycle(&attempts_as_numbers).map(|line| line.slope),
            attempts_by_outcome: count_by_outcome(
                run.cycles.iter().flat_map(|cycle| &cycle.readiness),
            ),
            vsocks_leaked: vsocks_leaked(run),
            verdict: CellVerdict::Undecided,
            expected: key.expectation(),
            cycles: run.cycles.iter().map(cell_cycle).collect(),
        };
        cell.verdict = cell.judged(None);
        cell
    }

    /// What it shows beside a cell whose latency rises by `bug_ms_per_cycle`.
    fn judged(&self, bug_ms_per_cycle: Option<f64>) -> CellVerdict {
        // Too few cycles, or a check failed.
        if self.flatness.rules.is_empty() {
            return CellVerdict::Undecided;
        }
        if self.expected == Expectation::Rising {
            return self.flatness.outcome.into();
        }
        let grows = |slope: f64| slope > SHARE_OF_THE_BUG * BUG_ATTEMPTS_PER_CYCLE.start();
        if self.attempts_per_cycle.is_some_and(grows) {
            return CellVerdict::Rising;
        }
        let (Some(bug), Some([lower, upper])) = (bug_ms_per_cycle, self.rise_ms()) else {
            return CellVerdict::Flat;
        };
        let bound = SHARE_OF_THE_BUG * bug * as_float(self.cycles.len());
        compared(lower, upper, bound).into()
    }

    /// The interval of its rise over the run.
    fn rise_ms(&self) -> Option<[f64; 2]> {
        let flatness = &self.flatness;
        let bound = flatness.bound?;
        let ends = [flatness.rise_lower_percent?, flatness.rise_upper_percent?];
        Some(ends.map(|percent| percent * bound.ms / bound.percent))
    }

    /// Whether it shows what it must.
    pub fn as_expected(&self) -> bool {
        self.mismatch().is_none()
    }

    /// What it must show and does not. The bug is three things together: latency rises, attempts
    /// rise with it, and sockets are left over. Without the leak, the rise has another cause.
    pub fn mismatch(&self) -> Option<CellMismatch> {
        self.latency_mismatch().or_else(|| self.leak_mismatch())
    }

    fn latency_mismatch(&self) -> Option<CellMismatch> {
        match self.expected {
            // Luck decides between flat and rising, but a run that ended early shows neither.
            Expectation::Either => {
                (self.verdict == CellVerdict::Undecided).then_some(CellMismatch::Undecided)
            }
            Expectation::Flat if self.verdict == CellVerdict::Flat => None,
            Expectation::Flat => Some(CellMismatch::NotFlat),
            Expectation::Rising if self.verdict != CellVerdict::Rising => {
                Some(CellMismatch::NotRising)
            }
            Expectation::Rising => {
                let about_one = self
                    .attempts_per_cycle
                    .is_some_and(|slope| BUG_ATTEMPTS_PER_CYCLE.contains(&slope));
                (!about_one).then_some(CellMismatch::Attempts)
            }
        }
    }

    /// A leaky guest leaves one socket per cycle unless it is evicted. The count after the first
    /// cycle is the reference, so that cycle adds none.
    fn leak_mismatch(&self) -> Option<CellMismatch> {
        let Some(leaked) = self.vsocks_leaked else {
            return Some(CellMismatch::SocketsNotReported);
        };
        if self.key.guest == GuestKind::Fixed || self.key.eviction {
            return (leaked > 0).then_some(CellMismatch::Leaks);
        }
        let cycles = u32::try_from(self.cycles.len()).unwrap_or(u32::MAX);
        let expected = cycles.saturating_sub(1);
        if self.expected == Expectation::Either {
            // A monitor that connects second collides with its own leaked pairs and may not be
            // connected by the time of the next suspend. Then there is nothing to leak.
            return (leaked == 0).then_some(CellMismatch::NoLeak { expected });
        }
        // Either count may include a short-lived connection.
        let tolerance = (expected / 10).max(1);
        let about = leaked.abs_diff(expected) <= tolerance && (leaked > 0 || expected == 0);
        (!about).then_some(CellMismatch::NoLeak { expected })
    }
}

/// What a cell must show and does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellMismatch {
    /// Flat and rising are both allowed, but there is no verdict.
    Undecided,
    /// Latency must stay flat.
    NotFlat,
    /// Latency must rise.
    NotRising,
    /// Latency rises, but attempts do not rise as leaked pairs would make them.
    Attempts,
    /// The guest did not report its open sockets.
    SocketsNotReported,
    /// Sockets are left over.
    Leaks,
    /// The leaky guest did not leak.
    NoLeak {
        /// About how many sockets must be left over.
        expected: u32,
    },
}

impl fmt::Display for CellMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undecided => f.write_str("must reach a verdict"),
            Self::NotFlat => f.write_str("must be flat"),
            Self::NotRising => f.write_str("must be rising"),
            Self::Attempts => f.write_str("attempts must rise by about one per cycle"),
            Self::SocketsNotReported => f.write_str("the guest must report its open sockets"),
            Self::Leaks => f.write_str("no socket may be left over"),
            Self::NoLeak { expected } => write!(f, "about {expected} sockets must be left over"),
        }
    }
}

fn vsocks_leaked(run: &Run) -> Option<u32> {
    let first = run.cycles.first()?.guest_open_vsocks?;
    let last = run.cycles.last()?.guest_open_vsocks?;
    Some(last.saturating_sub(first))
}

fn cell_cycle(cycle: &Cycle) -> CellCycle {
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
    use crate::record::{Attempt, AttemptOutcome, Phases, Resources, RunEnd, SubjectDescription};

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
            // A little noise, so that medians of few values do not tie.
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
                resources: Resources::default(),
            }
        };
        let run = Run {
            subject: SubjectDescription::default(),
            cycles_wanted: 40,
            looks: Vec::new(),
            cycles: (1..=40).map(cycle).collect(),
            end: RunEnd::Complete,
            vsocks_before: Some(2),
        };
        Cell::of_run(key, &run, Clock::Real)
    }

    fn unfixed() -> CellKey {
        key(GuestKind::Leaky, PortPolicy::Fixed, false)
    }

    #[test]
    fn the_bug_is_rising_latency_rising_attempts_and_a_leak() {
        assert_eq!(cell(unfixed(), 1, |n| n).mismatch(), None);
    }

    #[test]
    fn an_unfixed_cell_that_stays_flat_is_not_as_expected() {
        let flat = cell(unfixed(), 1, |_| 3);
        assert_eq!(flat.mismatch(), Some(CellMismatch::NotRising));
    }

    #[test]
    fn an_unfixed_cell_whose_attempts_do_not_rise_by_one_is_not_as_expected() {
        let steep = cell(unfixed(), 1, |n| 2 * n);
        assert_eq!(steep.mismatch(), Some(CellMismatch::Attempts));
        let slow = cell(unfixed(), 1, |n| 1 + n / 3);
        assert_eq!(slow.mismatch(), Some(CellMismatch::Attempts));
    }

    /// A cell beside the one that shows the bug.
    fn beside_the_bug(cell: Cell, bug_first: bool) -> Cell {
        let mut matrix = Matrix::default();
        let cells = [self::cell(unfixed(), 1, |n| n), cell];
        matrix.cells.extend(cells);
        if !bug_first {
            matrix.cells.reverse();
        }
        let bug = matrix.bug_ms_per_cycle();
        assert!(bug.is_some_and(|ms| (9.0..11.0).contains(&ms)), "{bug:?}");
        let mut cell = matrix.cells.swap_remove(usize::from(bug_first));
        cell.verdict = cell.judged(bug);
        cell
    }

    #[test]
    fn a_cell_is_flat_beside_the_bug_if_it_rises_by_less_than_a_tenth_of_it() {
        let fixed = key(GuestKind::Fixed, PortPolicy::Fixed, false);
        for bug_first in [true, false] {
            let flat = beside_the_bug(cell(fixed, 0, |_| 1), bug_first);
            assert_eq!(flat.mismatch(), None);
            // One attempt in each cycle, but the one takes 2 ms longer each time.
            let mut slow = cell(fixed, 0, |n| n / 5 + 1);
            slow.attempts_per_cycle = Some(0.0);
            let slow = beside_the_bug(slow, bug_first);
            assert_eq!(slow.mismatch(), Some(CellMismatch::NotFlat));
        }
    }

    #[test]
    fn a_cell_too_noisy_to_be_told_from_the_bug_is_not_as_expected() {
        let mut noisy = cell(key(GuestKind::Fixed, PortPolicy::Fixed, false), 0, |_| 1);
        noisy.flatness.rise_lower_percent = Some(-900.0);
        noisy.flatness.rise_upper_percent = Some(900.0);
        let noisy = beside_the_bug(noisy, true);
        assert_eq!(noisy.verdict, CellVerdict::Undecided);
        assert_eq!(noisy.mismatch(), Some(CellMismatch::NotFlat));
    }

    #[test]
    fn a_fixed_cell_that_rises_is_not_as_expected() {
        let rising = cell(key(GuestKind::Fixed, PortPolicy::Fixed, false), 0, |n| n);
        assert_eq!(rising.mismatch(), Some(CellMismatch::NotFlat));
    }

    #[test]
    fn a_leaky_cell_without_a_leak_is_not_as_expected_whatever_its_latency() {
        let wanted = Some(CellMismatch::NoLeak { expected: 39 });
        assert_eq!(cell(unfixed(), 0, |n| n).mismatch(), wanted);
        let random = key(GuestKind::Leaky, PortPolicy::Random, false);
        assert_eq!(cell(random, 0, |_| 1).mismatch(), wanted);
        assert_eq!(cell(random, 2, |_| 1).mismatch(), wanted);
        assert_eq!(cell(random, 1, |_| 1).mismatch(), None);
    }

    #[test]
    fn a_cell_that_depends_on_luck_must_complete_and_leak() {
        let lucky = CellKey {
            monitor_first: false,
            ..unfixed()
        };
        assert_eq!(cell(lucky, 1, |_| 1).mismatch(), None);
        assert_eq!(cell(lucky, 1, |n| n).mismatch(), None);
        let wanted = Some(CellMismatch::NoLeak { expected: 39 });
        assert_eq!(cell(lucky, 0, |_| 1).mismatch(), wanted);
        let mut seldom = cell(lucky, 1, |_| 1);
        seldom.vsocks_leaked = Some(7);
        assert_eq!(seldom.mismatch(), None);
        let mut broken = cell(lucky, 1, |_| 1);
        broken.verdict = CellVerdict::Undecided;
        assert_eq!(broken.mismatch(), Some(CellMismatch::Undecided));
    }

    #[test]
    fn a_socket_left_over_despite_a_fix_is_not_as_expected() {
        let evicted = key(GuestKind::Leaky, PortPolicy::Random, true);
        assert_eq!(cell(evicted, 0, |_| 1).mismatch(), None);
        let leaking = cell(evicted, 1, |_| 1);
        assert_eq!(leaking.mismatch(), Some(CellMismatch::Leaks));
    }

    #[test]
    fn a_guest_that_does_not_report_its_sockets_proves_nothing() {
        let mut unreported = cell(unfixed(), 1, |n| n);
        unreported.vsocks_leaked = None;
        assert_eq!(
            unreported.mismatch(),
            Some(CellMismatch::SocketsNotReported)
        );
    }

    #[test]
    fn a_matrix_without_cells_proves_nothing() {
        assert!(!Matrix::default().as_expected());
    }
}
