//! The matrix: the same cycles with each fix switched off on its own, and with all of them off.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use cycles::{CellKey, GuestKind, Host, Matrix, PortPolicy, Report, Run, ScaleRun};

use crate::artifacts::GuestImage;
use crate::kvm_place::{KvmArguments, KvmPlace};
use crate::report_files::{self, publish};
use crate::work::{Vmm, Work};
use crate::{measure, output, scale};

/// The name of the report's files, without ending.
const STEM: &str = "matrix";

/// What to run.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// How many cycles in each cell
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=i64::from(cycles::MAX_CYCLES)))]
    cycles: u32,
    /// Only cells whose name contains this, such as "leaky guest, fixed ports"
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Leaked pairs with which the guest of the scale run starts; 0 skips the scale run
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=16_000))]
    leaked_pairs: u32,
    /// Folder for matrix.json, matrix.csv and matrix.html
    #[arg(long, value_name = "DIR", default_value = "target/e2e")]
    output: PathBuf,
    #[command(flatten)]
    kvm: KvmArguments,
}

/// Runs all cells and the scale run; true if each shows what it must.
///
/// # Errors
/// If the host or a machine cannot be started. The report then holds the cells measured before.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let keys: Vec<CellKey> = keys()
        .into_iter()
        .filter(|key| key.to_string().contains(&arguments.only))
        .collect();
    anyhow::ensure!(
        !keys.is_empty(),
        "no cell's name contains {:?}",
        arguments.only
    );
    let place = arguments.kvm.place()?;
    measure::announce(place);
    let mut measured = Measured {
        place,
        host: None,
        started_at: report_files::now(),
        cycles_per_cell: arguments.cycles,
        cells: BTreeMap::new(),
        scale: Vec::new(),
    };
    let works = (1..).zip(&keys).map(|(number, key)| {
        output::say(&format!("cell {number} of {}: {key}", keys.len()));
        work(*key, number, arguments.cycles)
    });
    let ended = measure::run_all(
        place,
        &arguments.output,
        works.collect(),
        |number, result| {
            let collected =
                result.with_context(|| format!("cannot run the cell {}", keys[number]))?;
            measured.host = measured.host.take().or(collected.host);
            measured.cells.insert(number, (keys[number], collected.run));
            // A matrix takes minutes: a later failure must not lose earlier cells.
            report_files::write(&arguments.output, STEM, &measured.report())?;
            Ok(())
        },
    )
    .await;
    if ended.is_ok() {
        measured.scale = scale::measure(place, &arguments.output, arguments.leaked_pairs);
    }
    let report = measured.report();
    publish(&arguments.output, STEM, &report)?;
    ended.context("the matrix ended early, its report holds the cells measured before")?;
    let matrix_holds = report.matrix.as_ref().is_some_and(Matrix::as_expected);
    Ok(matrix_holds && measured.scale.iter().all(ScaleRun::as_expected))
}

/// What a matrix run has measured so far.
#[derive(Debug)]
struct Measured {
    place: KvmPlace,
    host: Option<Host>,
    started_at: String,
    cycles_per_cell: u32,
    /// By their place in the matrix: they do not end in the order in which they began.
    cells: BTreeMap<usize, (CellKey, Run)>,
    scale: Vec<ScaleRun>,
}

impl Measured {
    fn report(&self) -> Report {
        let setting = measure::setting(self.place, self.host.clone(), &self.started_at);
        let cells = self.cells.values();
        let mut matrix = Matrix {
            cycles_per_cell: self.cycles_per_cell,
            cells: Vec::new(),
        };
        for (key, run) in cells.clone() {
            matrix.add(*key, run, setting.clock);
        }
        // The verdict of the report is that of the cell with all fixes on.
        let released = cells.clone().find(|(key, _)| *key == released());
        let mut report = match released {
            Some((_, run)) => Report::of_run(setting, run.clone()),
            None => Report::of_matrix(setting, matrix.clone()),
        };
        report.matrix = Some(matrix);
        report.scale.clone_from(&self.scale);
        report
    }
}

/// The cell with all fixes on, as released.
const fn released() -> CellKey {
    CellKey {
        guest: GuestKind::Fixed,
        port_policy: PortPolicy::Random,
        eviction: true,
        monitor_first: true,
    }
}

/// All combinations with the monitor first, then the one without fixes with the status check first.
fn keys() -> Vec<CellKey> {
    let guests = [GuestKind::Leaky, GuestKind::Fixed];
    let policies = [PortPolicy::Fixed, PortPolicy::Continue, PortPolicy::Random];
    let mut keys = Vec::new();
    for guest in guests {
        for port_policy in policies {
            for eviction in [false, true] {
                keys.push(CellKey {
                    guest,
                    port_policy,
                    eviction,
                    monitor_first: true,
                });
            }
        }
    }
    keys.push(CellKey {
        guest: GuestKind::Leaky,
        port_policy: PortPolicy::Fixed,
        eviction: false,
        monitor_first: false,
    });
    keys
}

fn work(key: CellKey, number: u32, cycles: u32) -> Work {
    Work {
        name: format!("cell-{number}"),
        vmm: Vmm::Mctl,
        cycles,
        most_cycles: cycles,
        memory_mib: 256,
        vcpus: 1,
        guest: match key.guest {
            GuestKind::Leaky => GuestImage::Leaky,
            GuestKind::Fixed => GuestImage::Default,
        },
        expects_leaks: false,
        port_policy: Some(key.port_policy),
        eviction: Some(key.eviction),
        monitor_first: key.monitor_first,
    }
}

#[cfg(test)]
mod tests {
    use cycles::{RunEnd, SubjectDescription};

    use super::*;

    fn measured(key: CellKey) -> Measured {
        Measured {
            place: KvmPlace::Here,
            host: None,
            started_at: report_files::now(),
            cycles_per_cell: 30,
            cells: BTreeMap::from([(0, (key, empty_run()))]),
            scale: Vec::new(),
        }
    }

    fn empty_run() -> Run {
        Run {
            subject: SubjectDescription::default(),
            cycles_wanted: 30,
            looks: Vec::new(),
            cycles: Vec::new(),
            end: RunEnd::Complete,
            vsocks_before: None,
        }
    }

    #[test]
    fn a_report_without_the_released_cell_can_be_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let measured = measured(keys()[0]);
        report_files::write(folder.path(), STEM, &measured.report()).unwrap();
        let loaded = cycles::load(&folder.path().join("matrix.json")).unwrap();
        assert!(!loaded.has_run());
        assert_eq!(loaded.matrix.unwrap().cells.len(), 1);
    }

    #[test]
    fn the_released_cell_is_the_run_of_the_report() {
        let measured = measured(released());
        assert!(measured.report().has_run());
        assert_eq!(measured.report().matrix.unwrap().cells.len(), 1);
    }

    #[test]
    fn the_matrix_has_every_combination_and_no_fix_in_both_orders() {
        let keys = keys();
        assert_eq!(keys.len(), 13);
        assert_eq!(keys.iter().filter(|key| key.monitor_first).count(), 12);
        assert!(keys.contains(&released()));
    }
}
