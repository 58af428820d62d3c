//! The report as a whole: the root of `report.json`.
//!
//! `schema`, `clock`, `host`, `config`, `cycles` and `flatness` are always there; a failed check, the matrix,
//! peers and scale runs only if there are any. The constructors that judge a run are in `judge`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::clock::Clock;
use super::cycle::Cycle;
use super::matrix::Matrix;
use super::scale::ScaleRun;
use super::subject::SubjectDescription;
use super::verdict::{FailedCheck, Flatness, Outcome};

/// Version of the report format that this build writes.
pub const SCHEMA: u32 = 2;

/// The oldest version that this build reads. Schema 1 had no clock, resources or outcomes.
pub const OLDEST_SCHEMA: u32 = 1;

/// Separates the two parts of the reason of a run that was marked as undecided.
const BY_ITS_LATENCIES: &str = "; by its latencies: ";

/// One run of cycles with its verdict, and other measurements on the same host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`], or that of an older file.
    pub schema: u32,
    /// Which clock measured every duration.
    #[serde(default)]
    pub clock: Clock,
    /// Where it ran.
    pub host: Host,
    /// What was run.
    pub config: RunConfig,
    /// One record per completed cycle, in order.
    pub cycles: Vec<Cycle>,
    /// Whether anything grew.
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
    /// A report on one judged run: a peer that has become the run itself.
    pub fn of_peer(setting: Setting, cycles_wanted: u32, peer: Peer) -> Self {
        Self {
            schema: SCHEMA,
            clock: setting.clock,
            host: setting.host,
            config: RunConfig {
                cycles: cycles_wanted,
                started_at: setting.started_at,
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

    /// The same run as a peer in the report of another.
    pub fn into_peer(self) -> Peer {
        Peer {
            subject: self.config.subject,
            cycles: self.cycles,
            flatness: self.flatness,
            failed_check: self.failed_check,
        }
    }

    /// A report on `matrix` alone, where the cell with all fixes on was not run.
    pub fn of_matrix(setting: Setting, matrix: Matrix) -> Self {
        let no_run = Peer {
            subject: SubjectDescription {
                name: "mctl".to_owned(),
                ..SubjectDescription::default()
            },
            cycles: Vec::new(),
            flatness: Flatness::undecided(
                "only cells of a matrix were run, each with a verdict of its own",
            ),
            failed_check: None,
        };
        Self {
            matrix: Some(matrix),
            ..Self::of_peer(setting, 0, no_run)
        }
    }

    /// Leaves a verdict undecided that is not rising, for a reason that latencies do not show.
    pub fn mark_undecided(&mut self, reason: &str) {
        if self.flatness.outcome == Outcome::Flat {
            self.flatness.outcome = Outcome::Undecided;
        }
        self.flatness.reason = format!("{reason}{BY_ITS_LATENCIES}{}", self.flatness.reason);
    }

    /// Whether [`Self::mark_undecided`] changed the verdict, so that its latencies may say
    /// otherwise.
    pub(crate) fn is_marked_undecided(&self) -> bool {
        !self.flatness.is_flat() && self.flatness.reason.contains(BY_ITS_LATENCIES)
    }

    /// Whether it has a run, and not only a matrix.
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

/// Where, when and by which clock a run took place.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The computer and the kernel.
    pub host: Host,
    /// Which clock measured every duration.
    pub clock: Clock,
    /// When it started, RFC 3339.
    pub started_at: String,
}

/// The computer and the kernel that the run took place on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Which kind of KVM executes guests.
    pub kvm: KvmKind,
    /// Everything else by name: kernel, processor, memory, distribution…
    #[serde(flatten)]
    pub details: BTreeMap<String, serde_json::Value>,
}

impl Host {
    /// The kind of KVM for people, with the emulated processor where it is known.
    pub fn kvm_in_words(&self) -> String {
        let detail = self
            .details
            .get("kvm_detail")
            .and_then(|text| text.as_str());
        match (self.kvm, detail) {
            // Reports of older versions have a sentence here that does not name the module.
            (KvmKind::Virtual, Some(detail)) if detail.starts_with("kvm_") => {
                format!("virtual KVM host: {detail}")
            }
            (kind, _) => kind.in_words().to_owned(),
        }
    }
}

/// Which kind of KVM executes guests. Latencies of different kinds are not comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvmKind {
    /// KVM on a processor with virtualisation extensions.
    Hardware,
    /// KVM inside an emulated computer.
    Virtual,
    /// A KVM that interprets guest kernel code.
    Software,
    /// The host does not report it.
    Unknown,
}

impl KvmKind {
    /// A description for people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Hardware => "hardware KVM",
            Self::Virtual => "virtual KVM host (emulated processor)",
            Self::Software => "software KVM (guest kernel interpreted)",
            Self::Unknown => "unknown kind of KVM",
        }
    }
}

/// What was requested.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Cycles requested. Fewer records than this mean that the run ended early.
    pub cycles: u32,
    /// When it started, RFC 3339.
    #[serde(default)]
    pub started_at: String,
    /// Version of the program that made the report.
    #[serde(default)]
    pub version: String,
    /// What was suspended and resumed.
    #[serde(default)]
    pub subject: SubjectDescription,
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
