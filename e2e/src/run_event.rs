//! A run as another process sees it: one JSON line per event.
//!
//! The process that drives the machine writes them; the one that was called collects them, so that
//! a host that fails loses none of the cycles before. Both are of the same build, so there is no
//! version.

use std::ops::ControlFlow;

use anyhow::Context;
use cycles::{Cycle, FailedCheck, Host, Interruption, Observer, Run, RunEnd, SubjectDescription};
use serde::{Deserialize, Serialize};

use crate::output;

/// Something that happened in a run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RunEvent {
    /// The machine runs.
    Started {
        subject: SubjectDescription,
        cycles: u32,
    },
    /// A cycle was completed.
    Cycle { cycle: Box<Cycle>, cycles: u32 },
    /// A check failed.
    CheckFailed(FailedCheck),
    /// The run has ended. Its cycles are left out: each had an event of its own.
    Ended { host: Option<Host>, run: Box<Run> },
}

impl RunEvent {
    fn write(&self) {
        match serde_json::to_string(self) {
            Ok(line) => output::print(&line),
            Err(error) => output::error(&anyhow::Error::from(error)),
        }
    }
}

/// Writes the events of a run to standard output. Ctrl-C ends the run after the present cycle.
#[derive(Debug)]
pub struct EventWriter {
    interruption: Interruption,
}

impl EventWriter {
    /// For one run.
    pub fn new() -> Self {
        Self {
            interruption: Interruption::by_ctrl_c(|| {}),
        }
    }

    /// Writes the end of the run.
    pub fn ended(&self, host: Option<Host>, run: &Run) {
        let run = Run {
            cycles: Vec::new(),
            ..run.clone()
        };
        let run = Box::new(run);
        RunEvent::Ended { host, run }.write();
    }
}

impl Default for EventWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for EventWriter {
    fn run_started(&mut self, subject: &SubjectDescription, cycles: u32) {
        let subject = subject.clone();
        RunEvent::Started { subject, cycles }.write();
    }

    fn cycle_done(&mut self, cycle: &Cycle, cycles: u32) -> ControlFlow<()> {
        let cycle = Box::new(cycle.clone());
        RunEvent::Cycle { cycle, cycles }.write();
        if self.interruption.is_requested() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn check_failed(&mut self, failed: &FailedCheck) {
        RunEvent::CheckFailed(failed.clone()).write();
    }
}

/// What was collected of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct CollectedRun {
    /// The host, as far as it described itself.
    pub host: Option<Host>,
    /// The run.
    pub run: Run,
}

/// The events so far.
#[derive(Debug, Default)]
pub struct Collector {
    cycles: Vec<Cycle>,
    started: Option<(SubjectDescription, u32)>,
    ended: Option<CollectedRun>,
}

impl Collector {
    /// Collects events, one of each line, and passes them to `observer`.
    ///
    /// # Errors
    /// If a line is not an event.
    pub fn collect(
        &mut self,
        lines: impl Iterator<Item = Vec<u8>>,
        observer: &mut dyn Observer,
    ) -> anyhow::Result<()> {
        for line in lines {
            let event = serde_json::from_slice(&line).with_context(|| {
                format!("no event of a run: {}", String::from_utf8_lossy(&line))
            })?;
            self.add(event, observer);
        }
        Ok(())
    }

    fn add(&mut self, event: RunEvent, observer: &mut dyn Observer) {
        match event {
            RunEvent::Started { subject, cycles } => {
                observer.run_started(&subject, cycles);
                self.started = Some((subject, cycles));
            }
            RunEvent::Cycle { cycle, cycles } => {
                // The other process decides when the run ends.
                let _ = observer.cycle_done(&cycle, cycles);
                self.cycles.push(*cycle);
            }
            RunEvent::CheckFailed(failed) => observer.check_failed(&failed),
            RunEvent::Ended { host, run } => {
                self.ended = Some(CollectedRun { host, run: *run });
            }
        }
    }

    /// The run. If the other process failed in the middle of it, that is how the run ended, and the
    /// cycles before are kept.
    ///
    /// # Errors
    /// The failure, if the run had not begun.
    pub fn finish(self, end_of_process: anyhow::Result<()>) -> anyhow::Result<CollectedRun> {
        let Self {
            cycles,
            started,
            ended,
        } = self;
        if let Some(mut collected) = ended {
            collected.run.cycles = cycles;
            return Ok(collected);
        }
        let failure = end_of_process
            .err()
            .unwrap_or_else(|| anyhow::anyhow!("the process ended without a result"));
        let Some((subject, cycles_wanted)) = started else {
            return Err(failure);
        };
        let failed = FailedCheck {
            cycle: u32::try_from(cycles.len() + 1).unwrap_or(u32::MAX),
            check: "host".to_owned(),
            message: format!("the host of the run failed: {failure:#}"),
        };
        let run = Run {
            subject,
            cycles_wanted,
            looks: Vec::new(),
            cycles,
            end: RunEnd::CheckFailed(failed),
            vsocks_before: None,
        };
        Ok(CollectedRun { host: None, run })
    }
}
