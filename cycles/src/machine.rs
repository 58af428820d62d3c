//! A machine of the Machines API as a [`Subject`]: what `mctl bench resume` and the end-to-end
//! harness put through cycles.
//!
//! Latencies are the supervisor's own measurements, read from the machine's timings, so that the
//! way between harness and supervisor counts for nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use client::Client;
use machine_api::{
    AttemptOutcome as ApiOutcome, ExecRequest, GuestView, Machine, MachineState, Operation,
    PortPolicy as ApiPolicy, StartKind, Timing,
};

use crate::matrix::PortPolicy;
use crate::phases::Phases;
use crate::record::{Attempt, AttemptOutcome, SubjectDescription};
use crate::subject::{GuestObservation, ResumeOutcome, Subject, SuspendOutcome};

/// How many of the newest timings are looked through for the one just measured.
const TIMINGS_LIMIT: u32 = 4;
/// How often a question to the guest may fail, within the subject's deadline. Where ports are fixed
/// and the guest leaks, a question can meet leaked pairs although the readiness check before it
/// met none; the next one has another port, but there may be as many pairs as there were cycles.
const COLLISIONS: u32 = 200;
/// Pause between looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why a machine could not be put through a step.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A call of the API failed.
    #[error("cannot {what}")]
    Api {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: Box<client::Error>,
    },
    /// The machine was booted in place of being resumed.
    #[error("the machine was not resumed but booted: {reason}")]
    ColdBooted {
        /// As the supervisor gave it.
        reason: String,
    },
    /// No timing of the step appeared.
    #[error("the supervisor recorded no timing of the {what} within {} s", deadline.as_secs())]
    NoTiming {
        /// `suspend` or `resume`.
        what: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// init did not answer.
    #[error("the guest's init did not answer when asked for its state")]
    GuestSilent,
}

/// A started machine, to be suspended and resumed.
#[derive(Debug)]
pub struct MachineSubject {
    client: Client,
    machine: Machine,
    counter_file: Option<String>,
    deadline: Duration,
    generation: u64,
}

impl MachineSubject {
    /// A subject from a started machine. With `counter_file`, a file in the guest holds a number that
    /// a process there keeps counting up. `deadline` bounds each suspend and each resume.
    #[must_use]
    pub fn new(
        client: Client,
        machine: Machine,
        counter_file: Option<String>,
        deadline: Duration,
    ) -> Self {
        let generation = machine.generation;
        Self {
            client,
            machine,
            counter_file,
            deadline,
            generation,
        }
    }

    /// Waits until the guest's counter can be read for the first time.
    ///
    /// # Errors
    /// [`MachineError`] where the guest can't be asked; a counter that never appears is no error here, the run will say so.
    pub async fn counting(&self) -> Result<(), MachineError> {
        let begun = Instant::now();
        while self.counter().await?.is_none() && begun.elapsed() < self.deadline {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    async fn counter(&self) -> Result<Option<u64>, MachineError> {
        let Some(file) = &self.counter_file else {
            return Ok(None);
        };
        let request = ExecRequest {
            command: vec!["cat".to_owned(), file.clone()],
            timeout: Some(20),
            ..ExecRequest::default()
        };
        // Reading it twice does no harm.
        let mut patience = Patience::of(self.deadline);
        loop {
            match self.client.exec(&self.machine.id, &request).await {
                Ok(answer) => return Ok(answer.stdout.trim().parse().ok()),
                Err(_) if patience.is_left() => {}
                Err(source) => return Err(failed("read the guest's counter", source)),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn guest(&self) -> Result<GuestView, MachineError> {
        let mut patience = Patience::of(self.deadline);
        loop {
            let view = self.client.vsock(&self.machine.id).await;
            let view = view.map_err(|source| failed("ask the guest for its state", source))?;
            match view.guest {
                Some(guest) => return Ok(guest),
                None if patience.is_left() => {}
                None => return Err(MachineError::GuestSilent),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The timing of `operation` at the present generation, once it is recorded.
    async fn timing(
        &self,
        operation: Operation,
        what: &'static str,
    ) -> Result<Timing, MachineError> {
        let begun = Instant::now();
        loop {
            let timings = self
                .client
                .timings(&self.machine.id, Some(TIMINGS_LIMIT))
                .await;
            let timings = timings.map_err(|source| failed("read the timings", source))?;
            let wanted = timings.into_iter().find(|timing| {
                timing.operation == operation && timing.generation == self.generation
            });
            if let Some(timing) = wanted {
                return Ok(timing);
            }
            if begun.elapsed() >= self.deadline {
                return Err(MachineError::NoTiming {
                    what,
                    deadline: self.deadline,
                });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// Bounds repeated questions.
#[derive(Debug)]
struct Patience {
    until: Instant,
    failures: u32,
}

impl Patience {
    fn of(deadline: Duration) -> Self {
        Self {
            until: Instant::now() + deadline,
            failures: 0,
        }
    }

    /// Whether one more failure is borne; counts it.
    fn is_left(&mut self) -> bool {
        self.failures += 1;
        self.failures <= COLLISIONS && Instant::now() < self.until
    }
}

impl Subject for MachineSubject {
    type Error = MachineError;

    fn describe(&self) -> SubjectDescription {
        let config = &self.machine.config;
        let guest = config.guest.clone().unwrap_or_default();
        let vsock = config.vsock.clone().unwrap_or_default();
        let order = match vsock.monitor_first {
            Some(true) => "monitor first",
            _ => "status check first",
        };
        SubjectDescription {
            name: "mctl".to_owned(),
            memory_mib: Some(u64::from(guest.memory_mb)),
            vcpus: Some(guest.cpus),
            port_policy: vsock.port_policy.map(policy),
            eviction: vsock.eviction,
            details: BTreeMap::from([
                ("machine".to_owned(), self.machine.name.clone()),
                (
                    "image".to_owned(),
                    self.machine.image_ref.repository.clone(),
                ),
                ("reconnection".to_owned(), order.to_owned()),
            ]),
        }
    }

    async fn observe(&mut self) -> Result<GuestObservation, MachineError> {
        let counter = self.counter().await?;
        let guest = self.guest().await?;
        Ok(GuestObservation {
            boot_id: Some(guest.boot_id),
            counter,
            open_vsocks: Some(guest.sockets.total),
        })
    }

    async fn suspend(&mut self) -> Result<SuspendOutcome, MachineError> {
        let id = &self.machine.id;
        let suspended = self.client.suspend(id).await;
        suspended.map_err(|source| failed("suspend the machine", source))?;
        let reached = self
            .client
            .reach(id, MachineState::Suspended, self.deadline)
            .await;
        reached.map_err(|source| failed("suspend the machine", source))?;
        let timing = self.timing(Operation::Suspend, "suspend").await?;
        Ok(SuspendOutcome {
            total_ms: timing.total_ms,
            phases: phases(&timing),
            image_bytes_written: timing.image_bytes_written,
        })
    }

    async fn resume(&mut self) -> Result<ResumeOutcome, MachineError> {
        let id = &self.machine.id;
        let started = self.client.start(id).await;
        started.map_err(|source| failed("resume the machine", source))?;
        let reached = self
            .client
            .reach(id, MachineState::Started, self.deadline)
            .await;
        let machine = reached.map_err(|source| failed("resume the machine", source))?;
        if let Some(StartKind::ColdBooted { reason }) = machine.last_start {
            return Err(MachineError::ColdBooted { reason });
        }
        self.generation = machine.generation;
        let timing = self.timing(Operation::Resume, "resume").await?;
        let guest = self.observe().await?;
        Ok(ResumeOutcome {
            total_ms: timing.total_ms,
            phases: phases(&timing),
            readiness: timing.readiness.iter().map(attempt).collect(),
            guest,
        })
    }
}

fn failed(what: &'static str, source: client::Error) -> MachineError {
    MachineError::Api {
        what,
        source: Box::new(source),
    }
}

fn phases(timing: &Timing) -> Phases {
    let named = timing
        .phases
        .iter()
        .map(|phase| (phase.name.clone(), phase.ms));
    Phases::with_remainder(named, timing.total_ms)
}

fn attempt(attempt: &machine_api::Attempt) -> Attempt {
    Attempt {
        local_port: attempt.local_port,
        outcome: match attempt.outcome {
            ApiOutcome::Ok => AttemptOutcome::Ok,
            ApiOutcome::Reset => AttemptOutcome::Reset,
            ApiOutcome::NoReply => AttemptOutcome::NoReply,
            ApiOutcome::Closed => AttemptOutcome::Closed,
            ApiOutcome::BadReply => AttemptOutcome::BadReply,
        },
        ms: attempt.ms,
    }
}

const fn policy(policy: ApiPolicy) -> PortPolicy {
    match policy {
        ApiPolicy::Random => PortPolicy::Random,
        ApiPolicy::Continue => PortPolicy::Continue,
        ApiPolicy::Fixed => PortPolicy::Fixed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_repeated_past_as_many_pairs_as_a_long_matrix_leaks_and_not_for_ever() {
        let mut patience = Patience::of(Duration::from_secs(60));
        assert!((0..60).all(|_| patience.is_left()));
        assert!((0..COLLISIONS).any(|_| !patience.is_left()));
        assert!(!Patience::of(Duration::ZERO).is_left());
    }
}
