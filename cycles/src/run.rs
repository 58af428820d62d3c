//! The loop: suspend, resume, check that the guest lived on, again.
//!
//! A failed check or a failing subject ends the run, and the records so far are kept. Nothing is
//! printed here: an [`Observer`] is told.

use std::error::Error;
use std::ops::ControlFlow;

use crate::phases::Phases;
use crate::record::{Cycle, FailedCheck, SubjectDescription};
use crate::subject::{GuestObservation, ResumeOutcome, Subject, SuspendOutcome};

/// Cycles within which the guest's counter must have advanced at least once.
const COUNTER_PATIENCE_CYCLES: u32 = 10;

/// No duration beyond this (eleven days) is believed; it also keeps every sum finite.
pub(crate) const MAX_DURATION_MS: f64 = 1e9;

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOptions {
    /// How many cycles.
    pub cycles: u32,
    /// What a socket left over in the guest means.
    pub leftover_vsocks: LeftoverVsocks,
}

/// What a vsock socket left over in the guest means for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftoverVsocks {
    /// It ends the run.
    Fail,
    /// It is recorded only: the guest leaks on purpose.
    Record,
}

/// Is told how a run goes.
pub trait Observer: Send {
    /// The guest was looked at; `cycles` are about to run.
    fn run_started(&mut self, _subject: &SubjectDescription, _cycles: u32) {}

    /// A cycle is complete and its checks held. `Break` ends the run here.
    fn cycle_done(&mut self, _cycle: &Cycle, _cycles: u32) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// A check failed or the subject did; the run is over.
    fn check_failed(&mut self, _failed: &FailedCheck) {}
}

/// An observer that does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}

/// What is left of a run: whatever was recorded before it ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What was put through the cycles.
    pub subject: SubjectDescription,
    /// How many cycles were asked for.
    pub cycles_wanted: u32,
    /// The completed ones. A cycle whose check failed is included if its figures are usable.
    pub cycles: Vec<Cycle>,
    /// How it ended.
    pub end: RunEnd,
    /// Sockets open in the guest before the first suspend, where it says.
    pub vsocks_before: Option<u32>,
}

impl Run {
    /// The check that ended the run, if one did.
    pub fn failed_check(&self) -> Option<&FailedCheck> {
        match &self.end {
            RunEnd::CheckFailed(failed) => Some(failed),
            RunEnd::Complete | RunEnd::Interrupted => None,
        }
    }

    /// The resume latency of every cycle.
    pub fn resume_ms(&self) -> Vec<f64> {
        self.cycles.iter().map(|cycle| cycle.resume_ms).collect()
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEnd {
    /// After the last cycle.
    Complete,
    /// The observer wanted no more.
    Interrupted,
    /// A check did not hold, or the subject failed.
    CheckFailed(FailedCheck),
}

/// What can be wrong with a cycle. The text names expected and found values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Check {
    /// The guest could not be asked.
    #[error("the guest could not be observed before the first cycle: {chain}")]
    Observe {
        /// Error and sources.
        chain: String,
    },
    /// The subject could not suspend.
    #[error("suspend failed: {chain}")]
    Suspend {
        /// Error and sources.
        chain: String,
    },
    /// The subject could not resume.
    #[error("resume failed: {chain}")]
    Resume {
        /// Error and sources.
        chain: String,
    },
    /// A duration is negative, not a number, or beyond eleven days.
    #[error("{what} is not a usable duration: {value} ms")]
    Duration {
        /// Which figure.
        what: String,
        /// As reported.
        value: String,
    },
    /// The guest rebooted.
    #[error("the guest's boot id changed from {before} to {after}: it was booted, not resumed")]
    BootId {
        /// Before the first cycle.
        before: String,
        /// Now.
        after: String,
    },
    /// A process in the guest lost state.
    #[error("the guest's counter went back from {before} to {after}: its process did not live on")]
    CounterWentBack {
        /// After the previous cycle.
        before: u64,
        /// Now.
        after: u64,
    },
    /// The guest runs but does not get on.
    #[error("the guest's counter has stood at {value} for {cycles} cycles")]
    CounterStoodStill {
        /// Its value.
        value: u64,
        /// For how long.
        cycles: u32,
    },
    /// A connection of before the suspend was not closed.
    #[error(
        "{after} vsock sockets are open in the guest, after the first cycle it was {first}: \
         {} left over", after - first
    )]
    VsockLeftOver {
        /// After the first cycle.
        first: u32,
        /// Now.
        after: u32,
    },
    /// What the guest said before it no longer says.
    #[error("the guest no longer reports its {what}")]
    NoLongerReported {
        /// Which value.
        what: &'static str,
    },
}

impl Check {
    /// Stable name for reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Observe { .. } => "observe",
            Self::Suspend { .. } => "suspend",
            Self::Resume { .. } => "resume",
            Self::Duration { .. } => "duration",
            Self::BootId { .. } => "boot_id",
            Self::CounterWentBack { .. } => "counter_went_back",
            Self::CounterStoodStill { .. } => "counter_stood_still",
            Self::VsockLeftOver { .. } => "vsock_left_over",
            Self::NoLongerReported { .. } => "no_longer_reported",
        }
    }
}

/// Puts `subject` through its cycles. Always returns what was recorded.
pub async fn run_cycles<S: Subject>(
    subject: &mut S,
    options: RunOptions,
    observer: &mut dyn Observer,
) -> Run {
    let mut run = Run {
        subject: subject.describe(),
        cycles_wanted: options.cycles,
        cycles: Vec::new(),
        end: RunEnd::Complete,
        vsocks_before: None,
    };
    let before = match subject.observe().await {
        Ok(before) => before,
        Err(error) => {
            return ended(
                run,
                0,
                &Check::Observe {
                    chain: chain(&error),
                },
                observer,
            );
        }
    };
    run.vsocks_before = before.open_vsocks;
    observer.run_started(&run.subject, options.cycles);
    let mut continuity = Continuity::since(before, options.leftover_vsocks);
    for number in 1..=options.cycles {
        let (cycle, guest) = match one_cycle(subject, number).await {
            Ok(completed) => completed,
            Err(check) => return ended(run, number, &check, observer),
        };
        run.cycles.push(cycle);
        if let Err(check) = continuity.check(number, guest) {
            return ended(run, number, &check, observer);
        }
        if let Some(cycle) = run.cycles.last()
            && observer.cycle_done(cycle, options.cycles).is_break()
        {
            if number < options.cycles {
                run.end = RunEnd::Interrupted;
            }
            break;
        }
    }
    run
}

fn ended(mut run: Run, cycle: u32, check: &Check, observer: &mut dyn Observer) -> Run {
    let failed = FailedCheck {
        cycle,
        check: check.name().to_owned(),
        message: check.to_string(),
    };
    observer.check_failed(&failed);
    run.end = RunEnd::CheckFailed(failed);
    run
}

async fn one_cycle<S: Subject>(
    subject: &mut S,
    number: u32,
) -> Result<(Cycle, GuestObservation), Check> {
    let suspend = subject.suspend().await.map_err(|error| Check::Suspend {
        chain: chain(&error),
    })?;
    let resume = subject.resume().await.map_err(|error| Check::Resume {
        chain: chain(&error),
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
    usable_duration("suspend", suspend_ms)?;
    usable_duration("resume", resume_ms)?;
    usable_phases("suspend", &suspend_phases_ms)?;
    usable_phases("resume", &resume_phases_ms)?;
    for attempt in &readiness {
        usable_duration("readiness attempt", attempt.ms)?;
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
    };
    Ok((cycle, guest))
}

fn usable_phases(what: &str, phases: &Phases) -> Result<(), Check> {
    phases
        .iter()
        .try_for_each(|(name, ms)| usable_duration(&format!("{what} phase {name}"), ms))
}

fn usable_duration(what: &str, ms: f64) -> Result<(), Check> {
    if (0.0..=MAX_DURATION_MS).contains(&ms) {
        return Ok(());
    }
    Err(Check::Duration {
        what: what.to_owned(),
        value: ms.to_string(),
    })
}

/// An error and its sources in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What must stay true of the guest from cycle to cycle.
struct Continuity {
    before: GuestObservation,
    leftover: LeftoverVsocks,
    counter: Option<u64>,
    counter_moved_in: u32,
    vsocks_after_first: Option<u32>,
}

impl Continuity {
    fn since(before: GuestObservation, leftover: LeftoverVsocks) -> Self {
        let counter = before.counter;
        Self {
            before,
            leftover,
            counter,
            counter_moved_in: 0,
            vsocks_after_first: None,
        }
    }

    fn check(&mut self, cycle: u32, after: GuestObservation) -> Result<(), Check> {
        self.check_boot_id(after.boot_id)?;
        self.check_counter(cycle, after.counter)?;
        self.check_vsocks(after.open_vsocks)
    }

    fn check_boot_id(&self, after: Option<String>) -> Result<(), Check> {
        let Some(before) = &self.before.boot_id else {
            return Ok(());
        };
        let after = after.ok_or(Check::NoLongerReported { what: "boot id" })?;
        if after == *before {
            return Ok(());
        }
        Err(Check::BootId {
            before: before.clone(),
            after,
        })
    }

    fn check_counter(&mut self, cycle: u32, after: Option<u64>) -> Result<(), Check> {
        let Some(before) = self.counter else {
            return Ok(());
        };
        let after = after.ok_or(Check::NoLongerReported { what: "counter" })?;
        if after < before {
            return Err(Check::CounterWentBack { before, after });
        }
        if after > before {
            self.counter_moved_in = cycle;
        }
        self.counter = Some(after);
        let cycles = cycle - self.counter_moved_in;
        if cycles >= COUNTER_PATIENCE_CYCLES {
            return Err(Check::CounterStoodStill {
                value: after,
                cycles,
            });
        }
        Ok(())
    }

    /// The count after the first cycle is the yardstick: before it, connections of the boot may
    /// be open that a resume has no reason to open again.
    fn check_vsocks(&mut self, after: Option<u32>) -> Result<(), Check> {
        if self.before.open_vsocks.is_none() || self.leftover == LeftoverVsocks::Record {
            return Ok(());
        }
        let after = after.ok_or(Check::NoLongerReported {
            what: "open vsock sockets",
        })?;
        let first = *self.vsocks_after_first.get_or_insert(after);
        if after > first {
            Err(Check::VsockLeftOver { first, after })
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
