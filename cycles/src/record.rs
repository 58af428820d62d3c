//! The records of a run: exactly what `report.json` holds.
//!
//! `schema`, `host`, `config`, `cycles` and `flatness` are always there; a failed check, the
//! matrix, peers and scale runs only where there is something to say. Numbers are milliseconds
//! and bytes, as the names say. What a file must satisfy beyond these types is checked in `load`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::matrix::{Matrix, PortPolicy};
use crate::phases::{Phases, to_the_microsecond};
use crate::run::{Run, RunEnd};
use crate::scale::ScaleRun;
use crate::verdict::judge;

/// Version of the report format that this build writes; it reads no newer one.
pub const SCHEMA: u32 = 1;

/// One run of cycles with its verdict, and what was measured beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: u32,
    /// Where it ran.
    pub host: Host,
    /// What was run.
    pub config: RunConfig,
    /// One record per completed cycle, in order.
    pub cycles: Vec<Cycle>,
    /// Whether resume latency stayed flat.
    pub flatness: Flatness,
    /// The check that ended the run early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_check: Option<FailedCheck>,
    /// The fixes switched off one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matrix: Option<Matrix>,
    /// Other VMMs on the same work and the same host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    /// Resumes of a guest that starts with thousands of leaked pairs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scale: Vec<ScaleRun>,
}

impl Report {
    /// A report on `run`, judged.
    pub fn of_run(host: Host, started_at: String, run: Run) -> Self {
        let flatness = judge(&run.resume_ms(), run.failed_check()).flatness;
        let failed_check = run.failed_check().cloned();
        let interrupted = (run.end == RunEnd::Interrupted).then(|| {
            format!(
                "interrupted after {} of {} cycles",
                run.cycles.len(),
                run.cycles_wanted
            )
        });
        let mut report = Self {
            schema: SCHEMA,
            host,
            config: RunConfig {
                cycles: run.cycles_wanted,
                started_at,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                subject: run.subject,
            },
            cycles: run.cycles,
            flatness,
            failed_check,
            matrix: None,
            peers: Vec::new(),
            scale: Vec::new(),
        };
        if let Some(objection) = interrupted {
            report.deny(&objection);
        }
        report
    }

    /// Takes the verdict back for something that latencies don't show.
    pub fn deny(&mut self, objection: &str) {
        self.flatness.flat = false;
        self.flatness.reason = format!("{objection}; by its latencies: {}", self.flatness.reason);
    }

    /// Readiness attempts that the guest refused. With ports from a random place and a guest that closes
    /// what a resume has reset, there is none.
    pub fn refused_attempts(&self) -> usize {
        let attempts = self.cycles.iter().flat_map(|cycle| &cycle.readiness);
        attempts
            .filter(|one| one.outcome == AttemptOutcome::Reset)
            .count()
    }

    /// A report on `matrix` alone, where no cell with all fixes on was run to stand for the whole.
    pub fn of_matrix(host: Host, started_at: String, matrix: Matrix) -> Self {
        Self {
            schema: SCHEMA,
            host,
            config: RunConfig {
                cycles: 0,
                started_at,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                subject: SubjectDescription {
                    name: "mctl".to_owned(),
                    ..SubjectDescription::default()
                },
            },
            cycles: Vec::new(),
            flatness: Flatness {
                slope_ms_per_cycle: None,
                ci95: None,
                last_to_first_decile_ratio: None,
                flat: false,
                reason: "only cells of a matrix were run, each with a verdict of its own"
                    .to_owned(),
            },
            failed_check: None,
            matrix: Some(matrix),
            peers: Vec::new(),
            scale: Vec::new(),
        }
    }

    /// A full report on what was measured as a peer of another run.
    pub fn of_peer(host: Host, started_at: String, cycles_wanted: u32, peer: Peer) -> Self {
        Self {
            schema: SCHEMA,
            host,
            config: RunConfig {
                cycles: cycles_wanted,
                started_at,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                subject: peer.subject,
            },
            cycles: peer.cycles,
            flatness: peer.flatness,
            failed_check: peer.failed_check,
            matrix: None,
            peers: Vec::new(),
            scale: Vec::new(),
        }
    }

    /// Whether it has a run of its own, and not only a matrix.
    pub fn has_run(&self) -> bool {
        self.config.cycles > 0 || !self.cycles.is_empty()
    }

    /// The resume latency of every cycle.
    pub fn resume_ms(&self) -> Vec<f64> {
        self.cycles.iter().map(|cycle| cycle.resume_ms).collect()
    }

    /// The suspend latency of every cycle.
    pub fn suspend_ms(&self) -> Vec<f64> {
        self.cycles.iter().map(|cycle| cycle.suspend_ms).collect()
    }
}

/// The machine and the kernel that the run took place on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// What executes guests.
    pub kvm: KvmKind,
    /// Everything else that is worth knowing, by name: kernel, processor, memory, distribution…
    #[serde(flatten)]
    pub details: BTreeMap<String, serde_json::Value>,
}

/// What executes guests; latencies of different kinds are not comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvmKind {
    /// KVM on a processor with virtualisation extensions.
    Hardware,
    /// KVM inside an emulated computer (QEMU TCG with emulated SVM).
    Virtual,
    /// A KVM that interprets guest kernel mode.
    Software,
    /// The host did not say.
    Unknown,
}

impl KvmKind {
    /// A few words for people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Hardware => "hardware KVM",
            Self::Virtual => "virtual KVM host (emulated processor)",
            Self::Software => "software KVM (guest kernel interpreted)",
            Self::Unknown => "unknown kind of KVM",
        }
    }
}

/// What was asked of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Cycles wanted; fewer records than this mean that the run ended early.
    pub cycles: u32,
    /// When it started, RFC 3339.
    #[serde(default)]
    pub started_at: String,
    /// Version of the programs that made the report.
    #[serde(default)]
    pub version: String,
    /// What was suspended and resumed.
    #[serde(default)]
    pub subject: SubjectDescription,
}

/// What a subject says about itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SubjectDescription {
    /// A name for titles, such as `mctl-vmm` or `Firecracker v1.15`.
    pub name: String,
    /// Guest memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Guest processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// How local vsock ports are chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_policy: Option<PortPolicy>,
    /// Whether saved pairs are evicted from the guest before the transport reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eviction: Option<bool>,
    /// Everything else by name: kernel, image, order of reconnection…
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

/// One suspend and the resume that followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cycle {
    /// From 1.
    pub cycle: u32,
    /// From the request until the image is durable and the VMM gone.
    #[serde(serialize_with = "to_the_microsecond")]
    pub suspend_ms: f64,
    /// From the request until the machine counts as started.
    #[serde(serialize_with = "to_the_microsecond")]
    pub resume_ms: f64,
    /// Sums to `suspend_ms`.
    pub suspend_phases_ms: Phases,
    /// Sums to `resume_ms`.
    pub resume_phases_ms: Phases,
    /// Every attempt to reach init after the resume, in order.
    pub readiness: Vec<Attempt>,
    /// Open vsock sockets in the guest after the cycle.
    #[serde(default)]
    pub guest_open_vsocks: Option<u32>,
    /// Bytes that the suspend wrote.
    #[serde(default)]
    pub image_bytes_written: Option<u64>,
}

impl Cycle {
    /// How often init was asked before it answered.
    pub fn attempts(&self) -> u32 {
        u32::try_from(self.readiness.len()).unwrap_or(u32::MAX)
    }
}

/// One attempt of a readiness check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Host end of the connection, where one was chosen.
    #[serde(default)]
    pub local_port: Option<u32>,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// How long it took.
    #[serde(serialize_with = "to_the_microsecond")]
    pub ms: f64,
}

/// How a readiness attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// Init answered with its status.
    Ok,
    /// The guest answered the connection request with RST.
    Reset,
    /// Nothing came before the attempt's deadline.
    NoReply,
    /// The connection was closed before the reply.
    Closed,
    /// The reply was not init's status.
    BadReply,
}

impl AttemptOutcome {
    /// The name that reports and tables use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Reset => "reset",
            Self::NoReply => "no_reply",
            Self::Closed => "closed",
            Self::BadReply => "bad_reply",
        }
    }
}

/// The verdict on a series of resume latencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flatness {
    /// Theil-Sen slope; absent below two cycles.
    pub slope_ms_per_cycle: Option<f64>,
    /// Its 95 % confidence interval.
    pub ci95: Option<[f64; 2]>,
    /// Median of the last tenth of the cycles divided by the median of the first tenth.
    pub last_to_first_decile_ratio: Option<f64>,
    /// Whether the series is flat.
    pub flat: bool,
    /// Why, in one sentence.
    pub reason: String,
}

/// A check on the guest that did not hold, and with it the end of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCheck {
    /// The cycle in which it failed; 0 is before the first.
    pub cycle: u32,
    /// Stable name of the check.
    pub check: String,
    /// What was expected and what was found.
    pub message: String,
}

/// Another VMM measured on the same work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// What it is.
    pub subject: SubjectDescription,
    /// Its cycles.
    pub cycles: Vec<Cycle>,
    /// Its verdict.
    pub flatness: Flatness,
    /// The check that ended its run early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_check: Option<FailedCheck>,
}

impl Peer {
    /// A peer from its run, judged.
    pub fn of_run(run: Run) -> Self {
        let flatness = judge(&run.resume_ms(), run.failed_check()).flatness;
        let failed_check = run.failed_check().cloned();
        Self {
            subject: run.subject,
            cycles: run.cycles,
            flatness,
            failed_check,
        }
    }
}
