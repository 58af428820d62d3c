//! A machine as its users see it: suspended by the API, resumed by the API, and useful again when a
//! probe of theirs gets an answer.
//!
//! Nothing here needs more than what any platform with the Machines API has. By its nature it
//! measures with this program's clock, the way to the platform included.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use client::Client;
use cycles::{
    Attempt, AttemptOutcome, GuestObservation, Phases, ResumeOutcome, Subject, SubjectDescription,
    SuspendOutcome,
};
use machine_api::{ExecRequest, Machine, MachineState, StartKind};

use super::probe::{NoAnswer, Probe};

/// Longest that one question of a probe may take.
const QUESTION_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after a question without an answer: it is the resolution of the measurement.
const PAUSE: Duration = Duration::from_millis(5);
/// Where a Linux guest tells which boot it is in.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbedError {
    #[error("cannot {what}")]
    Api {
        what: &'static str,
        source: Box<client::Error>,
    },
    #[error("the machine was booted, not resumed: {reason}")]
    ColdBooted { reason: String },
    #[error("{probe} had no answer within {} s, after {questions} questions", deadline.as_secs())]
    NoAnswer {
        probe: String,
        deadline: Duration,
        questions: u32,
        /// Of the last question.
        source: NoAnswer,
    },
}

/// A started machine and the probe that tells whether it is useful.
#[derive(Debug)]
pub(super) struct ProbedMachine {
    client: Client,
    machine: Machine,
    probe: Probe,
    /// What a TCP probe says first.
    send: Vec<u8>,
    deadline: Duration,
    /// Whether the machine answered when it was asked for its boot id.
    tells_boot_id: bool,
}

impl ProbedMachine {
    pub(super) fn new(
        client: Client,
        machine: Machine,
        probe: Probe,
        send: Vec<u8>,
        deadline: Duration,
    ) -> Self {
        Self {
            client,
            machine,
            probe,
            send,
            deadline,
            tells_boot_id: false,
        }
    }

    /// Asks until there is an answer. Returns how long all questions before the last one took, with
    /// their pauses, and how long the last one took.
    async fn wait_for_answer(&self) -> Result<(f64, f64), ProbedError> {
        let begun = Instant::now();
        let mut questions = 0;
        loop {
            let asked = Instant::now();
            let left = self.deadline.saturating_sub(begun.elapsed());
            let longest = left.clamp(PAUSE, QUESTION_DEADLINE);
            let id = &self.machine.id;
            let answer = self.probe.ask(&self.client, id, &self.send, longest).await;
            questions += 1;
            match answer {
                Ok(()) => {
                    let before = asked.duration_since(begun).as_secs_f64() * 1e3;
                    return Ok((before, ms_since(asked)));
                }
                Err(source) if begun.elapsed() + PAUSE >= self.deadline => {
                    return Err(ProbedError::NoAnswer {
                        probe: self.probe.to_string(),
                        deadline: self.deadline,
                        questions,
                        source,
                    });
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn wait_for(&self, state: MachineState, what: &'static str) -> Result<(), ProbedError> {
        let id = &self.machine.id;
        let waited = self.client.wait_until(id, state, None, self.deadline);
        waited.await.map_err(|source| failed(what, source))
    }

    /// The boot id, if the machine has commands and a `/proc`.
    async fn boot_id(&self) -> Result<Option<String>, client::Error> {
        let request = ExecRequest {
            command: vec!["cat".to_owned(), BOOT_ID.to_owned()],
            timeout: Some(10),
            ..ExecRequest::default()
        };
        let answer = self.client.exec(&self.machine.id, &request).await?;
        let text = answer.stdout.trim();
        let is_one = answer.exit_code == 0 && !text.is_empty();
        Ok(is_one.then(|| text.to_owned()))
    }
}

impl Subject for ProbedMachine {
    type Error = ProbedError;

    fn describe(&self) -> SubjectDescription {
        let guest = self.machine.config.guest.clone();
        SubjectDescription {
            name: format!("machine {}", self.machine.name),
            memory_mib: guest.as_ref().map(|guest| u64::from(guest.memory_mb)),
            vcpus: guest.as_ref().map(|guest| guest.cpus),
            details: BTreeMap::from([
                ("probe".to_owned(), self.probe.to_string()),
                ("platform".to_owned(), self.client.endpoint().to_string()),
            ]),
            ..SubjectDescription::default()
        }
    }

    /// The probe must have an answer before the first cycle, or it would tell nothing afterwards.
    async fn observe(&mut self) -> Result<GuestObservation, ProbedError> {
        self.wait_for_answer().await?;
        // A platform without commands, or a machine without `cat`, is measured all the same.
        let boot_id = self.boot_id().await.unwrap_or_default();
        self.tells_boot_id = boot_id.is_some();
        Ok(GuestObservation {
            boot_id,
            ..GuestObservation::default()
        })
    }

    async fn suspend(&mut self) -> Result<SuspendOutcome, ProbedError> {
        let what = "suspend the machine";
        let begun = Instant::now();
        let asked = self.client.suspend(&self.machine.id).await;
        asked.map_err(|source| failed(what, source))?;
        let request_ms = ms_since(begun);
        self.wait_for(MachineState::Suspended, what).await?;
        let total_ms = ms_since(begun);
        let named = [
            ("request".to_owned(), request_ms),
            ("suspended".to_owned(), total_ms - request_ms),
        ];
        Ok(SuspendOutcome {
            total_ms,
            phases: Phases::with_remainder(named, total_ms),
            image_bytes_written: None,
        })
    }

    async fn resume(&mut self) -> Result<ResumeOutcome, ProbedError> {
        let what = "resume the machine";
        let begun = Instant::now();
        let asked = self.client.start(&self.machine.id).await;
        asked.map_err(|source| failed(what, source))?;
        let request_ms = ms_since(begun);
        let (unanswered_ms, answer_ms) = self.wait_for_answer().await?;
        let total_ms = ms_since(begun);
        // The platform may call it started only after its own check.
        self.wait_for(MachineState::Started, what).await?;
        let machine = self.client.machine(&self.machine.id).await;
        let machine = machine.map_err(|source| failed("look up the machine", source))?;
        if let Some(StartKind::ColdBooted { reason }) = machine.last_start {
            return Err(ProbedError::ColdBooted { reason });
        }
        let boot_id = if self.tells_boot_id {
            let told = self.boot_id().await;
            told.map_err(|source| failed("ask the guest for its boot id", source))?
        } else {
            None
        };
        let named = [
            ("request".to_owned(), request_ms),
            ("unanswered".to_owned(), unanswered_ms),
            ("answer".to_owned(), answer_ms),
        ];
        Ok(ResumeOutcome {
            total_ms,
            phases: Phases::with_remainder(named, total_ms),
            // Questions before the machine is there are no failures of it.
            readiness: vec![Attempt {
                local_port: None,
                outcome: AttemptOutcome::Ok,
                ms: answer_ms,
            }],
            guest: GuestObservation {
                boot_id,
                ..GuestObservation::default()
            },
        })
    }
}

fn failed(what: &'static str, source: client::Error) -> ProbedError {
    ProbedError::Api {
        what,
        source: Box::new(source),
    }
}

fn ms_since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}
