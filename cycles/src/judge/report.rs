//! Judged runs: the constructors of records that need a verdict.

use super::verdict::judge;
use crate::record::{Clock, Peer, Report, Run, RunEnd, Setting};

impl Report {
    /// A report on `run`, judged. A run that was interrupted is never flat.
    pub fn of_run(setting: Setting, run: Run) -> Self {
        let wanted = run.cycles_wanted;
        let clock = setting.clock;
        let interrupted = (run.end == RunEnd::Interrupted)
            .then(|| format!("interrupted after {} of {wanted} cycles", run.cycles.len()));
        let mut report = Self::of_peer(setting, wanted, Peer::of_run(run, clock));
        if let Some(reason) = interrupted {
            report.mark_not_flat(&reason);
        }
        report
    }
}

impl Peer {
    /// A peer from its run, whose durations are of `clock`, judged.
    pub fn of_run(run: Run, clock: Clock) -> Self {
        let flatness = judge(&run.resume_ms(), run.failed_check(), clock).flatness;
        let failed_check = run.failed_check().cloned();
        Self {
            subject: run.subject,
            cycles: run.cycles,
            flatness,
            failed_check,
        }
    }
}
