//! The ledger of cost: what boot, suspend and resume cost in the last accepted state, and whether the
//! present state is dearer.
//!
//! Its figures are of virtual time, so they hold on every machine, but only under the kernels, the
//! QEMU and the compiler that they belong to. Under others they are shown and not enforced.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use cycles::Clock;
use serde::{Deserialize, Serialize};

use crate::figures::{Cost, OperationFigures, TOTAL};

/// A phase or a total is dearer if it exceeds the ledger by this share,
pub const DEARER_PERCENT: f64 = 5.0;
/// and by this many ms, at the median.
pub const DEARER_MS: f64 = 0.5;

/// The ledger, as its file holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// The clock of all figures; always that of virtual time.
    pub clock: Clock,
    /// What was measured, in words.
    pub work: String,
    /// What the figures belong to.
    pub made_with: Versions,
    /// By operation, then by phase.
    pub operations: BTreeMap<String, BTreeMap<String, Entry>>,
}

/// Programs whose change may change every figure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The kernel of the virtual host.
    pub host_kernel: String,
    /// The kernel of the guests.
    pub guest_kernel: String,
    /// The first line of its `--version`.
    pub qemu: String,
    /// The compiler of this program.
    pub rustc: String,
}

/// The accepted cost of a phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What it costs.
    #[serde(flatten)]
    pub cost: Cost,
    /// Why it was last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Why a ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file could not be read.
    #[error("cannot read the ledger {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is no ledger.
    #[error("{path} is not a ledger of cost")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// It could not be written.
    #[error("cannot write the ledger {path}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl Ledger {
    /// What was measured now.
    pub fn of_figures(work: &str, made_with: Versions, figures: &[OperationFigures]) -> Self {
        let entries = |figures: &OperationFigures| {
            let costs = figures.costs().into_iter();
            costs
                .map(|(phase, cost)| (phase, Entry { cost, reason: None }))
                .collect()
        };
        Self {
            clock: Clock::Virtual,
            work: work.to_owned(),
            made_with,
            operations: figures
                .iter()
                .map(|one| (one.name.clone(), entries(one)))
                .collect(),
        }
    }

    /// The dearer of two runs of one build, entry by entry. Some phases of the guest have one of two
    /// lengths by chance, so the ledger keeps the longer one.
    #[must_use]
    pub fn dearer_of(mut self, other: &Self) -> Self {
        for (operation, phases) in &mut self.operations {
            for (phase, entry) in phases {
                let others = other.operations.get(operation);
                if let Some(others) = others.and_then(|phases| phases.get(phase))
                    && others.cost.p50_ms > entry.cost.p50_ms
                {
                    *entry = others.clone();
                }
            }
        }
        self
    }

    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read, or is no ledger.
    pub fn read(path: &Path) -> Result<Option<Self>, LedgerError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let path = path.to_owned();
                return Err(LedgerError::Read { path, source });
            }
        };
        let parsed = serde_json::from_slice(&text).map_err(|source| LedgerError::Parse {
            path: path.to_owned(),
            source,
        })?;
        Ok(Some(parsed))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), LedgerError> {
        let failed = |source| LedgerError::Write {
            path: path.to_owned(),
            source,
        };
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        std::fs::write(path, text + "\n").map_err(failed)
    }

    /// This state as the accepted one. Entries that differ from `before` by more than noise get the
    /// reason; those that do not keep their figures, so that they do not drift.
    #[must_use]
    pub fn accepted(mut self, before: Option<&Self>, reason: &str) -> Self {
        for (operation, phases) in &mut self.operations {
            for (phase, entry) in phases {
                match before.and_then(|ledger| ledger.operations.get(operation)?.get(phase)) {
                    Some(old) if !differs(old.cost, entry.cost) => *entry = old.clone(),
                    _ => entry.reason = Some(reason.to_owned()),
                }
            }
        }
        self
    }

    /// Compares what was measured now with this ledger.
    pub fn compare(&self, made_with: &Versions, figures: &[OperationFigures]) -> Comparison {
        let mut rows = Vec::new();
        for operation in figures {
            let entries = self.operations.get(&operation.name);
            let at_least = operation.at_least_ms();
            for (phase, new) in operation.costs() {
                rows.push(Row {
                    operation: operation.name.clone(),
                    old: entries
                        .and_then(|entries| entries.get(&phase))
                        .map(|entry| entry.cost),
                    new,
                    at_least_ms: at_least.get(&phase).copied().unwrap_or(0.0),
                    phase,
                });
            }
        }
        rows.sort_by(|one, other| {
            let key = |row: &Row| (row.operation.clone(), row.phase != TOTAL);
            let dearest = other.new.p50_ms.total_cmp(&one.new.p50_ms);
            key(one).cmp(&key(other)).then(dearest)
        });
        Comparison {
            rows,
            other_versions: self.made_with.differences(made_with),
        }
    }
}

impl Versions {
    /// What differs, in words.
    fn differences(&self, now: &Self) -> Vec<String> {
        let fields = [
            ("the host's kernel", &self.host_kernel, &now.host_kernel),
            ("the guests' kernel", &self.guest_kernel, &now.guest_kernel),
            ("QEMU", &self.qemu, &now.qemu),
            ("rustc", &self.rustc, &now.rustc),
        ];
        fields
            .into_iter()
            .filter(|(_, old, now)| old != now)
            .map(|(name, old, now)| format!("{name} is {now:?}, the ledger's was {old:?}"))
            .collect()
    }
}

/// Beyond the noise of two runs of one build, as `bench` shows it.
fn differs(old: Cost, new: Cost) -> bool {
    let beyond = (new.p50_ms - old.p50_ms).abs();
    beyond > 0.02 * old.p50_ms && beyond > 0.1
}

/// The present cost beside the ledger's.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// By operation, its total first, then the dearest phase.
    pub rows: Vec<Row>,
    /// Versions that are not the ledger's, in words.
    pub other_versions: Vec<String>,
}

/// One phase.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Of which operation.
    pub operation: String,
    /// Which phase.
    pub phase: String,
    /// In the ledger.
    pub old: Option<Cost>,
    /// Now.
    pub new: Cost,
    /// What the present median is at least: the measurements are few, and some phases have one of two
    /// lengths by chance.
    pub at_least_ms: f64,
}

impl Row {
    /// Whether it costs more than the ledger allows. A phase that is not in the ledger is compared
    /// with none.
    pub fn is_dearer(&self) -> bool {
        let old = self.old.map_or(0.0, |cost| cost.p50_ms);
        let more = self.at_least_ms - old;
        more > DEARER_MS && more > old * DEARER_PERCENT / 100.0
    }
}

impl Comparison {
    /// Whether the versions are those of the ledger, so that its figures are binding.
    pub fn is_binding(&self) -> bool {
        self.other_versions.is_empty()
    }

    /// The rows that cost more than the ledger allows.
    pub fn dearer(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.is_dearer())
    }

    /// Whether nothing became dearer, or the ledger is not binding.
    pub fn holds(&self) -> bool {
        !self.is_binding() || self.dearer().next().is_none()
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:32} {:>10} {:>10} {:>10} {:>7}   (virtual ms, p50)\n",
            "cost", "ledger", "now", "at least", "ratio"
        );
        let mut operation = "";
        for row in &self.rows {
            let title = if row.operation == operation {
                format!("  {}", row.phase)
            } else {
                operation = &row.operation;
                format!("{} ({})", row.operation, row.phase)
            };
            let (old, ratio) = match row.old {
                Some(old) if old.p50_ms > 0.0 => (
                    format!("{:.3}", old.p50_ms),
                    format!("{:.3}", row.new.p50_ms / old.p50_ms),
                ),
                Some(old) => (format!("{:.3}", old.p50_ms), "-".to_owned()),
                None => ("-".to_owned(), "-".to_owned()),
            };
            let mark = if row.is_dearer() { "  DEARER" } else { "" };
            // Writing into a string cannot fail.
            let _ = writeln!(
                text,
                "{title:32} {old:>10} {:>10.3} {:>10.3} {ratio:>7}{mark}",
                row.new.p50_ms, row.at_least_ms
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions() -> Versions {
        Versions {
            host_kernel: "6.1".to_owned(),
            guest_kernel: "6.1".to_owned(),
            qemu: "7.2".to_owned(),
            rustc: "1.90".to_owned(),
        }
    }

    fn figures(total_ms: f64, spawn_ms: f64) -> [OperationFigures; 1] {
        [OperationFigures {
            name: "resume".to_owned(),
            phases: vec![
                ("spawn".to_owned(), vec![spawn_ms]),
                (TOTAL.to_owned(), vec![total_ms]),
            ],
        }]
    }

    fn ledger(total_ms: f64, spawn_ms: f64) -> Ledger {
        Ledger::of_figures("idle", versions(), &figures(total_ms, spawn_ms))
    }

    fn compare(old: &Ledger, new: &[OperationFigures]) -> Comparison {
        old.compare(&versions(), new)
    }

    #[test]
    fn dearer_means_by_five_percent_and_half_a_millisecond() {
        for (old, new, dearer) in [
            (30.0, 31.4, false),
            (30.0, 31.6, true),
            (2.0, 2.4, false),
            (2.0, 2.6, true),
            (30.0, 10.0, false),
        ] {
            let comparison = compare(&ledger(old, 1.0), &figures(new, 1.0));
            assert_eq!(comparison.dearer().count() == 1, dearer, "{old} to {new}");
            assert_eq!(comparison.holds(), !dearer, "{old} to {new}");
        }
    }

    /// The ten boots of a `test` once had their longer length in more than half of both runs.
    #[test]
    fn a_phase_that_has_one_of_two_lengths_by_chance_is_not_dearer() {
        let spawn = |durations: &[f64]| {
            [OperationFigures {
                name: "resume".to_owned(),
                phases: vec![("spawn".to_owned(), durations.to_vec())],
            }]
        };
        let old = ledger(30.0, 2.419);
        let (short, long) = (2.419, 2.971);
        let by_chance = [
            long, long, short, long, short, long, long, short, long, long,
        ];
        assert_eq!(compare(&old, &spawn(&by_chance)).dearer().count(), 0);
        assert_eq!(compare(&old, &spawn(&[long; 10])).dearer().count(), 1);
    }

    #[test]
    fn a_phase_may_be_dearer_although_the_total_is_not() {
        let comparison = compare(&ledger(30.0, 1.0), &figures(30.0, 2.0));
        let dearer: Vec<&str> = comparison.dearer().map(|row| row.phase.as_str()).collect();
        assert_eq!(dearer, ["spawn"]);
        assert!(comparison.table().contains("DEARER"));
    }

    #[test]
    fn a_new_phase_must_not_cost_more_than_the_bound() {
        let mut old = ledger(30.0, 2.0);
        let phases = old.operations.get_mut("resume").unwrap();
        phases.remove("spawn");
        assert_eq!(compare(&old, &figures(30.0, 2.0)).dearer().count(), 1);
        assert_eq!(compare(&old, &figures(30.0, 0.4)).dearer().count(), 0);
    }

    #[test]
    fn under_other_versions_the_ledger_is_shown_and_not_enforced() {
        let mut now = versions();
        now.qemu = "10.0".to_owned();
        let comparison = ledger(30.0, 1.0).compare(&now, &figures(60.0, 1.0));
        assert_eq!(comparison.dearer().count(), 1);
        assert!(comparison.holds());
        assert!(comparison.other_versions[0].contains("QEMU"));
    }

    #[test]
    fn accepting_gives_a_reason_to_what_changed_and_keeps_the_rest() {
        let old = ledger(30.0, 1.0).accepted(None, "first");
        let now = ledger(20.0, 1.05).accepted(Some(&old), "a faster restore");
        let entry = |phase: &str| now.operations["resume"][phase].clone();
        assert_eq!(entry(TOTAL).reason.as_deref(), Some("a faster restore"));
        assert_eq!(entry(TOTAL).cost.p50_ms, 20.0);
        assert_eq!(entry("spawn"), old.operations["resume"]["spawn"]);
    }

    #[test]
    fn of_two_runs_each_entry_is_taken_by_itself() {
        let (one, other) = (ledger(30.0, 2.0), ledger(31.0, 1.0));
        assert_eq!(one.dearer_of(&other), ledger(31.0, 2.0));
    }

    #[test]
    fn a_ledger_is_read_as_it_was_written_and_damage_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench/ledger.json");
        assert!(Ledger::read(&path).unwrap().is_none());
        ledger(30.0, 1.0).write(&path).unwrap();
        assert_eq!(Ledger::read(&path).unwrap(), Some(ledger(30.0, 1.0)));
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(
            Ledger::read(&path),
            Err(LedgerError::Parse { .. })
        ));
    }
}
