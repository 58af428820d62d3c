//! The matrix: the same cycles with each fix switched off on its own, and with all of them off.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use client::Client;
use cycles::{
    CellKey, Clock, GuestKind, Host, LeftoverVsocks, Matrix, PortPolicy, Report, Run, RunOptions,
    ScaleRun, Setting,
};
use machine_api::VsockOptions;

use crate::artifacts::GuestImage;
use crate::host::KvmHost;
use crate::machine::{MachineSpec, run_on_new_machine};
use crate::report_files::{self, publish};
use crate::{output, scale};

/// The name of the report's files, without ending.
const STEM: &str = "matrix";

/// What to run.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// How many cycles in each cell
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=i64::from(cycles::MAX_CYCLES)))]
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
    let images = [GuestImage::Default, GuestImage::Leaky];
    let host = KvmHost::start(&arguments.output, &images).await?;
    let mut measured = Measured {
        host: host.describe().await?,
        started_at: report_files::now(),
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
            "the matrix ended early, its report holds the cells measured before; see {}",
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
        measured.add_cell(*key, run);
        // A matrix takes an hour under emulation: a later failure must not lose earlier cells.
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
    /// The run of the cell with all fixes on, whose verdict is that of the report.
    released: Option<Run>,
    scale: Vec<ScaleRun>,
}

impl Measured {
    fn add_cell(&mut self, key: CellKey, run: Run) {
        self.matrix.add(key, &run, Clock::Real);
        if key == released() {
            self.released = Some(run);
        }
    }

    fn report(&self) -> Report {
        let setting = Setting {
            host: self.host.clone(),
            clock: Clock::Real,
            started_at: self.started_at.clone(),
        };
        let mut report = match &self.released {
            Some(run) => Report::of_run(setting, run.clone()),
            None => Report::of_matrix(setting, self.matrix.clone()),
        };
        report.matrix = Some(self.matrix.clone());
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

async fn run_cell(client: &Client, key: CellKey, number: u32, cycles: u32) -> anyhow::Result<Run> {
    let spec = MachineSpec {
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
    let options = RunOptions {
        cycles,
        most_cycles: cycles,
        leftover_vsocks: leftover,
    };
    run_on_new_machine(client, &spec, options).await
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
            started_at: report_files::now(),
            matrix: Matrix {
                cycles_per_cell: 30,
                cells: Vec::new(),
            },
            released: None,
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
        let mut measured = measured();
        measured.add_cell(keys()[0], empty_run());
        report_files::write(folder.path(), STEM, &measured.report()).unwrap();
        let loaded = cycles::load(&folder.path().join("matrix.json")).unwrap();
        assert!(!loaded.has_run());
        assert_eq!(loaded.matrix.unwrap().cells.len(), 1);
    }

    #[test]
    fn the_released_cell_is_the_run_of_the_report() {
        let mut measured = measured();
        measured.add_cell(released(), empty_run());
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
