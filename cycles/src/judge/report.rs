//! Judged runs: the constructors of records that need a verdict, and what else a run must show.

use super::verdict::{Judgement, MIN_CYCLES, judge};
use crate::record::{
    AttemptOutcome, Clock, FailedCheck, MAX_CYCLES, Peer, Report, Run, RunEnd, Setting,
    count_by_outcome,
};

impl Report {
    /// A report on `run`, judged. A run that was interrupted is never flat.
    pub fn of_run(setting: Setting, run: Run) -> Self {
        let wanted = run.cycles_wanted;
        let clock = setting.clock;
        let interrupted = (run.end == RunEnd::Interrupted)
            .then(|| format!("interrupted after {} of {wanted} cycles", run.cycles.len()));
        let mut report = Self::of_peer(setting, wanted, Peer::of_run(run, clock));
        if let Some(reason) = interrupted {
            report.mark_undecided(&reason);
        }
        report
    }

    /// Whether its verdict holds no rules although its cycles can be judged: one of schema 1, which
    /// had two outcomes and other rules. A run that does not count keeps its verdict.
    pub(crate) fn is_outdated(&self) -> bool {
        self.flatness.rules.is_empty()
            && self.cycles.len() >= MIN_CYCLES
            && !self.is_marked_undecided()
    }

    /// Judges a run of schema 1 by the rules of this build.
    pub fn bring_up_to_date(&mut self) {
        if self.is_outdated() {
            self.flatness = self.judged_again().flatness;
        }
    }

    /// Judges the run again by the rules of this build.
    pub fn judged_again(&self) -> Judgement {
        judge(
            &self.cycles,
            self.failed_check.as_ref(),
            self.clock,
            &self.flatness.looks,
        )
    }

    /// Fails the run if a readiness attempt failed, however it ended: for a guest that is healthy.
    /// Its first attempt after each resume must succeed, since ports start at random, and a guest
    /// that closes the connections that a resume has reset leaves nothing in the way.
    pub fn require_first_attempts(&mut self) {
        let failed = |outcome| outcome != AttemptOutcome::Ok;
        let first = self.cycles.iter().find(|cycle| {
            let mut attempts = cycle.readiness.iter();
            attempts.any(|attempt| failed(attempt.outcome))
        });
        let Some(cycle) = first.map(|cycle| cycle.cycle) else {
            return;
        };
        if self.failed_check.is_some() {
            return;
        }
        let all = self.cycles.iter().flat_map(|cycle| &cycle.readiness);
        let counts: Vec<String> = count_by_outcome(all)
            .into_iter()
            .filter(|(outcome, _)| failed(*outcome))
            .map(|(outcome, count)| format!("{count} {}", outcome.name()))
            .collect();
        self.failed_check = Some(FailedCheck {
            cycle,
            check: "readiness_attempts".to_owned(),
            message: format!(
                "readiness attempts of a healthy guest failed, in this cycle first: {} in all",
                counts.join(", ")
            ),
        });
        self.flatness = self.judged_again().flatness;
    }
}

impl Peer {
    /// A peer from its run, whose durations are of `clock`, judged.
    pub fn of_run(run: Run, clock: Clock) -> Self {
        let mut looks = run.looks.clone();
        let count = u32::try_from(run.cycles.len()).unwrap_or(MAX_CYCLES);
        // A run that ended between two looks is judged once more.
        if looks.last().is_some_and(|last| *last != count) {
            looks.push(count);
        }
        let flatness = judge(&run.cycles, run.failed_check(), clock, &looks).flatness;
        let failed_check = run.failed_check().cloned();
        Self {
            subject: run.subject,
            cycles: run.cycles,
            flatness,
            failed_check,
        }
    }
}
