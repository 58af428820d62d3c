//! The loop: suspend, resume, check that the guest survived, again.
//!
//! A failed check or a failing subject ends the run; the records so far are returned. Nothing is
//! printed here: an [`Observer`] is notified.

use std::ops::ControlFlow;

use super::check::{Continuity, CycleError, LeftoverVsocks, check_duration, check_phases};
use super::subject::{GuestObservation, ResumeOutcome, Subject, SuspendOutcome};
use crate::judge::{judge, looks};
use crate::record::{Clock, Cycle, FailedCheck, Outcome, Run, RunEnd, SubjectDescription};

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOptions {
    /// How many cycles.
    pub cycles: u32,
    /// To how many cycles the run goes on while it is undecided. Not more than `cycles`: it is not
    /// judged on the way.
    pub most_cycles: u32,
    /// What a vsock socket left over in the guest means.
    pub leftover_vsocks: LeftoverVsocks,
}

/// Is notified of the progress of a run, and may end it.
pub trait Observer: Send {
    /// The guest was observed; `cycles` are about to run.
    fn run_started(&mut self, _subject: &SubjectDescription, _cycles: u32) {}

    /// A cycle is complete and its checks passed; the run now aims at `cycles`, which become more
    /// while it is undecided. `Break` ends the run.
    fn cycle_done(&mut self, _cycle: &Cycle, _cycles: u32) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// A check failed, or the subject did; the run has ended.
    fn check_failed(&mut self, _failed: &FailedCheck) {}
}

/// An observer that does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}

/// Puts `subject` through its cycles. Always returns what was recorded.
pub async fn run_cycles<S: Subject>(
    subject: &mut S,
    options: RunOptions,
    observer: &mut dyn Observer,
) -> Run {
    let mut run = Run {
        subject: subject.describe(),
        cycles_wanted: options.cycles,
        looks: Vec::new(),
        cycles: Vec::new(),
        end: RunEnd::Complete,
        vsocks_before: None,
    };
    let before = match subject.observe().await {
        Ok(before) => before,
        Err(error) => {
            let error = CycleError::Observe {
                chain: error_text::with_causes(&error),
            };
            return failed(run, 0, &error, observer);
        }
    };
    run.vsocks_before = before.open_vsocks;
    observer.run_started(&run.subject, options.cycles);
    let mut continuity = Continuity::since(before, options.leftover_vsocks);
    let mut looks = looks(options.cycles, options.most_cycles)
        .into_iter()
        .peekable();
    for number in 1..=options.most_cycles.max(options.cycles) {
        let (cycle, guest) = match one_cycle(subject, number).await {
            Ok(completed) => completed,
            Err(error) => return failed(run, number, &error, observer),
        };
        run.cycles.push(cycle);
        if let Err(error) = continuity.check(number, guest) {
            return failed(run, number, &error, observer);
        }
        let ends = looks.next_if_eq(&number).is_some()
            && match looks.peek() {
                Some(next) => is_decided(&mut run, number, *next),
                None => true,
            };
        if let Some(cycle) = run.cycles.last()
            && observer.cycle_done(cycle, run.cycles_wanted).is_break()
        {
            if !ends {
                run.end = RunEnd::Interrupted;
            }
            break;
        }
        if ends {
            break;
        }
    }
    run
}

/// Judges the run after `number` cycles. If it is undecided, it wants `next` cycles.
fn is_decided(run: &mut Run, number: u32, next: u32) -> bool {
    run.looks.push(number);
    // The outcome is the same by any clock.
    let judgement = judge(&run.cycles, None, Clock::Real, &run.looks);
    let decided = judgement.flatness.outcome != Outcome::Undecided;
    if !decided {
        run.cycles_wanted = next;
    }
    decided
}

fn failed(mut run: Run, cycle: u32, error: &CycleError, observer: &mut dyn Observer) -> Run {
    let failed = FailedCheck {
        cycle,
        check: error.name().to_owned(),
        message: error.to_string(),
    };
    observer.check_failed(&failed);
    run.end = RunEnd::CheckFailed(failed);
    run
}

async fn one_cycle<S: Subject>(
    subject: &mut S,
    number: u32,
) -> Result<(Cycle, GuestObservation), CycleError> {
    let suspend = subject
        .suspend()
        .await
        .map_err(|error| CycleError::Suspend {
            chain: error_text::with_causes(&error),
        })?;
    let resume = subject.resume().await.map_err(|error| CycleError::Resume {
        chain: error_text::with_causes(&error),
    })?;
    let resources = subject
        .resources()
        .await
        .map_err(|error| CycleError::Resources {
            chain: error_text::with_causes(&error),
        })?;
    let SuspendOutcome {
        total_ms: suspend_ms,
        phases: suspend_phases_ms,
        image_bytes_written,
    } = suspend;
    let ResumeOutcome {
        total_ms: resume_ms,
        phases: resume_phases_ms,
        readiness,
        guest,
    } = resume;
    check_duration("suspend", suspend_ms)?;
    check_duration("resume", resume_ms)?;
    check_phases("suspend", &suspend_phases_ms)?;
    check_phases("resume", &resume_phases_ms)?;
    for attempt in &readiness {
        check_duration("readiness attempt", attempt.ms)?;
    }
    let cycle = Cycle {
        cycle: number,
        suspend_ms,
        resume_ms,
        suspend_phases_ms,
        resume_phases_ms,
        readiness,
        guest_open_vsocks: guest.open_vsocks,
        image_bytes_written,
        resources,
    };
    Ok((cycle, guest))
}

#[cfg(test)]
mod tests;
