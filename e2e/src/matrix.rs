//! The matrix: the same cycles with each fix switched off on its own, and the disease where all are.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use client::Client;
use cycles::{
    Cell, CellKey, GuestKind, Host, LeftoverVsocks, Matrix, PortPolicy, Report, Run, ScaleRun,
};
use machine_api::VsockOptions;

use crate::artifacts::GuestImage;
use crate::host::KvmHost;
use crate::main_job::{Wanted, cycles_on, humantime_now, publish};
use crate::{output, report_files, scale};

/// What the files of the report are called.
const STEM: &str = "matrix";

/// What to run.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// How many cycles in each cell
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=i64::from(cycles::MAX_CYCLES)))]
    cycles: u32,
    /// Only cells of which this is a part, such as "leaky guest, fixed ports"
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Leaked pairs with which the guest of the scale run begins; 0 leaves the scale run out
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=16_000))]
    leaked_pairs: u32,
    /// Folder for matrix.json, matrix.csv and matrix.html
    #[arg(long, value_name = "DIR", default_value = "target/e2e")]
    output: PathBuf,
}

/// Runs all cells; true if each shows what it must, the disease included, and the scale run too.
///
/// # Errors
/// Where no host could be had, or a machine not be booted. What was measured before is in the
/// report all the same.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let keys: Vec<CellKey> = keys()
        .into_iter()
        .filter(|key| key.to_string().contains(&arguments.only))
        .collect();
    anyhow::ensure!(!keys.is_empty(), "no cell is called {:?}", arguments.only);
    let images = [GuestImage::Default, GuestImage::Leaky];
    let host = KvmHost::start(&arguments.output, &images).await?;
    let mut measured = Measured {
        host: host.describe().await?,
        started_at: humantime_now(),
        matrix: Matrix {
            cycles_per_cell: arguments.cycles,
            cells: Vec::new(),
        },
        released: None,
        scale: Vec::new(),
    };
    let cells = run_cells(&host, &keys, arguments, &mut measured).await;
    let log = host.log().to_owned();
    let ended = cells.and(host.stop());
    if ended.is_ok() {
        measured.scale = scale::measure(&arguments.output, arguments.leaked_pairs);
    }
    publish(&arguments.output, STEM, &measured.report())?;
    ended.with_context(|| {
        format!(
            "the matrix ended early, its report holds what was measured before; see {}",
            log.display()
        )
    })?;
    let scale_holds = measured.scale.iter().all(ScaleRun::as_expected);
    Ok(measured.matrix.as_expected() && scale_holds)
}

async fn run_cells(
    host: &KvmHost,
    keys: &[CellKey],
    arguments: &Arguments,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    for (number, key) in (1..).zip(keys) {
        output::say(&format!("cell {number} of {}: {key}", keys.len()));
        let run = run_cell(host.client(), *key, number, arguments.cycles)
            .await
            .with_context(|| format!("cannot run the cell {key}"))?;
        measured.take(*key, run);
        // A matrix takes an hour under emulation: what is measured must survive what comes after.
        report_files::write(&arguments.output, STEM, &measured.report())?;
    }
    Ok(())
}

/// What a matrix run has measured so far.
#[derive(Debug)]
struct Measured {
    host: Host,
    started_at: String,
    matrix: Matrix,
    /// The run of the cell of what is released, which stands for the whole.
    released: Option<Run>,
    scale: Vec<ScaleRun>,
}

impl Measured {
    fn take(&mut self, key: CellKey, run: Run) {
        self.matrix.cells.push(Cell::of_run(key, &run));
        if key == released() {
            self.released = Some(run);
        }
    }

    fn report(&self) -> Report {
        let (host, started_at) = (self.host.clone(), self.started_at.clone());
        let mut report = match &self.released {
            Some(run) => Report::of_run(host, started_at, run.clone()),
            None => Report::of_matrix(host, started_at, self.matrix.clone()),
        };
        report.matrix = Some(self.matrix.clone());
        report.scale.clone_from(&self.scale);
        report
    }
}

/// The cell of what is released: all fixes on.
const fn released() -> CellKey {
    CellKey {
        guest: GuestKind::Fixed,
        port_policy: PortPolicy::Random,
        eviction: true,
        monitor_first: true,
    }
}

/// All combinations with the unlucky order of reconnection, then the disease's in the lucky order.
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

async fn run_cell(client: &Client, key: CellKey, number: u32, cycles: u32) -> anyhow::Result<Run> {
    let wanted = Wanted {
        name: format!("cell-{number}"),
        image: match key.guest {
            GuestKind::Leaky => GuestImage::Leaky,
            GuestKind::Fixed => GuestImage::Default,
        },
        memory_mib: 256,
        vcpus: 1,
        vsock: Some(VsockOptions {
            port_policy: Some(key.port_policy.into()),
            eviction: Some(key.eviction),
            monitor_first: Some(key.monitor_first),
        }),
    };
    let leftover = match key.guest {
        GuestKind::Leaky => LeftoverVsocks::Record,
        GuestKind::Fixed => LeftoverVsocks::Fail,
    };
    cycles_on(client, &wanted, cycles, leftover).await
}

#[cfg(test)]
mod tests {
    use cycles::{KvmKind, RunEnd, SubjectDescription};

    use super::*;

    fn measured() -> Measured {
        Measured {
            host: Host {
                kvm: KvmKind::Unknown,
                details: std::collections::BTreeMap::new(),
            },
            started_at: humantime_now(),
            matrix: Matrix {
                cycles_per_cell: 30,
                cells: Vec::new(),
            },
            released: None,
            scale: Vec::new(),
        }
    }

    fn ran() -> Run {
        Run {
            subject: SubjectDescription::default(),
            cycles_wanted: 30,
            cycles: Vec::new(),
            end: RunEnd::Complete,
            vsocks_before: None,
        }
    }

    #[test]
    fn cells_make_a_report_that_can_be_loaded_without_the_released_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut measured = measured();
        measured.take(keys()[0], ran());
        report_files::write(folder.path(), STEM, &measured.report()).unwrap();
        let loaded = cycles::load(&folder.path().join("matrix.json")).unwrap();
        assert!(!loaded.has_run());
        assert_eq!(loaded.matrix.unwrap().cells.len(), 1);
    }

    #[test]
    fn the_released_cell_stands_for_the_whole() {
        let mut measured = measured();
        measured.take(released(), ran());
        assert!(measured.report().has_run());
        assert_eq!(measured.report().matrix.unwrap().cells.len(), 1);
    }

    #[test]
    fn the_matrix_has_every_combination_and_the_disease_in_both_orders() {
        let keys = keys();
        assert_eq!(keys.len(), 13);
        assert_eq!(keys.iter().filter(|key| key.monitor_first).count(), 12);
        assert!(keys.contains(&released()));
    }
}
