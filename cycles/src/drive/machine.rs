//! A machine of the Machines API as a [`Subject`]: `mctl bench resume` and the end-to-end harness put
//! it through cycles.
//!
//! Latencies are the supervisor's own measurements, read from the machine's timings: they exclude
//! the way between harness and supervisor.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use client::{Client, ErrorKind};
use machine_api::{
    AttemptOutcome as ApiOutcome, ExecRequest, GuestView, Machine, MachineState, Operation,
    PortPolicy as ApiPolicy, StartKind, Timing,
};

use super::resources::by_name;
use super::subject::{GuestObservation, ResumeOutcome, Subject, SuspendOutcome};
use crate::record::{Attempt, AttemptOutcome, Phases, PortPolicy, Resources, SubjectDescription};

/// How many of the newest timings are searched for the one just measured.
const TIMINGS_LIMIT: u32 = 4;
/// How often a call to the guest may fail within the subject's deadline. Where ports are fixed and
/// the guest leaks, a call can collide with leaked pairs although the readiness check before it
/// did not. The next call has another port, but there may be as many pairs as there were cycles.
const MAX_FAILED_CALLS: u32 = 200;
/// Pause between two polls.
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// Why a step of a machine failed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A call to the API failed.
    #[error("cannot {what}")]
    Api {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: Box<client::Error>,
    },
    /// The machine was booted instead of resumed.
    #[error("the machine was booted, not resumed: {reason}")]
    ColdBooted {
        /// As the supervisor reported it.
        reason: String,
    },
    /// No timing of the step appeared.
    #[error("the supervisor recorded no timing of the {} within {} s", name(*operation), deadline.as_secs())]
    NoTiming {
        /// Of which operation.
        operation: Operation,
        /// How long the caller waited.
        deadline: Duration,
    },
    /// init did not answer.
    #[error("the guest's init does not report its state")]
    NoGuestState,
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
    /// A subject from a started machine. `counter_file` is a file in the guest with a number that a
    /// process there keeps counting up. `deadline` bounds each suspend and each resume.
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
    /// [`MachineError`] if the guest cannot be asked. A counter that never appears is no error here:
    /// the run reports it.
    pub async fn wait_for_counter(&self) -> Result<(), MachineError> {
        let begun = Instant::now();
        while self.counter().await?.is_none() && begun.elapsed() < self.deadline {
            tokio::time::sleep(POLL_PAUSE).await;
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
        // Reading it twice is harmless.
        let mut patience = Patience::of(self.deadline);
        loop {
            match self.client.exec(&self.machine.id, &request).await {
                Ok(answer) => return Ok(answer.stdout.trim().parse().ok()),
                Err(_) if patience.allows_another() => {}
                Err(source) => return Err(failed("read the guest's counter", source)),
            }
            tokio::time::sleep(POLL_PAUSE).await;
        }
    }

    async fn guest_state(&self) -> Result<GuestView, MachineError> {
        let mut patience = Patience::of(self.deadline);
        loop {
            let view = self.client.vsock(&self.machine.id).await;
            let view = view.map_err(|source| failed("ask the guest for its state", source))?;
            match view.guest {
                Some(guest) => return Ok(guest),
                None if patience.allows_another() => {}
                None => return Err(MachineError::NoGuestState),
            }
            tokio::time::sleep(POLL_PAUSE).await;
        }
    }

    async fn timing(&self, operation: Operation) -> Result<Timing, MachineError> {
        let (id, generation) = (&self.machine.id, self.generation);
        recorded_timing(&self.client, id, operation, generation, self.deadline).await
    }
}

/// The timing of `operation` at `generation`, as soon as the supervisor has recorded it.
///
/// # Errors
/// [`MachineError`] if timings cannot be read, or this one does not appear within `deadline`.
pub async fn recorded_timing(
    client: &Client,
    machine_id: &str,
    operation: Operation,
    generation: u64,
    deadline: Duration,
) -> Result<Timing, MachineError> {
    let begun = Instant::now();
    loop {
        let timings = client.timings(machine_id, Some(TIMINGS_LIMIT)).await;
        let timings = timings.map_err(|source| failed("read the timings", source))?;
        let wanted = timings
            .into_iter()
            .find(|timing| timing.operation == operation && timing.generation == generation);
        if let Some(timing) = wanted {
            return Ok(timing);
        }
        if begun.elapsed() >= deadline {
            return Err(MachineError::NoTiming {
                operation,
                deadline,
            });
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// How long a failing call is repeated.
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

    /// Counts a failure; true if the call may be repeated.
    fn allows_another(&mut self) -> bool {
        self.failures += 1;
        self.failures <= MAX_FAILED_CALLS && Instant::now() < self.until
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
            port_policy: vsock.port_policy.map(PortPolicy::from),
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
        let guest = self.guest_state().await?;
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
        let timing = self.timing(Operation::Suspend).await?;
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
        let timing = self.timing(Operation::Resume).await?;
        let guest = self.observe().await?;
        Ok(ResumeOutcome {
            total_ms: timing.total_ms,
            phases: phases(&timing),
            readiness: timing.readiness.iter().map(attempt).collect(),
            guest,
        })
    }

    async fn resources(&mut self) -> Result<Resources, MachineError> {
        match self.client.resources(&self.machine.id).await {
            Ok(resources) => Ok(by_name(&resources)),
            // A supervisor of an earlier build.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Resources::default()),
            Err(source) => Err(failed("measure what is in use", source)),
        }
    }
}

const fn name(operation: Operation) -> &'static str {
    match operation {
        Operation::Start => "start",
        Operation::Suspend => "suspend",
        Operation::Resume => "resume",
        Operation::Stop => "stop",
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

impl From<ApiPolicy> for PortPolicy {
    fn from(policy: ApiPolicy) -> Self {
        match policy {
            ApiPolicy::Random => Self::Random,
            ApiPolicy::Continue => Self::Continue,
            ApiPolicy::Fixed => Self::Fixed,
        }
    }
}

impl From<PortPolicy> for ApiPolicy {
    fn from(policy: PortPolicy) -> Self {
        match policy {
            PortPolicy::Random => Self::Random,
            PortPolicy::Continue => Self::Continue,
            PortPolicy::Fixed => Self::Fixed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_repeated_past_as_many_pairs_as_a_long_matrix_leaks_but_not_for_ever() {
        let mut patience = Patience::of(Duration::from_secs(60));
        assert!((0..60).all(|_| patience.allows_another()));
        assert!((0..MAX_FAILED_CALLS).any(|_| !patience.allows_another()));
        assert!(!Patience::of(Duration::ZERO).allows_another());
    }
}
