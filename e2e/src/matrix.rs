//! The matrix: the same cycles with each fix switched off on its own, and the disease where all are.

use std::path::PathBuf;

use clap::Args;
use client::Client;
use cycles::{
    Cell, CellKey, GuestKind, LeftoverVsocks, Matrix, PortPolicy, Report, Run, matrix_table,
    scale_table,
};
use machine_api::{PortPolicy as ApiPolicy, VsockOptions};

use crate::artifacts::GuestImage;
use crate::host::KvmHost;
use crate::main_job::{Wanted, cycles_on, humantime_now, publish};
use crate::{output, scale};

/// What to run.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// How many cycles in each cell
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
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

/// Runs all cells; true if each shows what it must, the disease included.
///
/// # Errors
/// Where no host could be had, or a machine not be booted.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let keys: Vec<CellKey> = keys()
        .into_iter()
        .filter(|key| key.to_string().contains(&arguments.only))
        .collect();
    anyhow::ensure!(!keys.is_empty(), "no cell is called {:?}", arguments.only);
    let host = KvmHost::start(&arguments.output, &[GuestImage::Default, GuestImage::Leaky]).await?;
    let started_at = humantime_now();
    let mut matrix = Matrix {
        cycles_per_cell: arguments.cycles,
        cells: Vec::new(),
    };
    let mut healthy: Option<Run> = None;
    for (number, key) in (1..).zip(&keys) {
        output::say(&format!("cell {number} of {}: {key}", keys.len()));
        let run = run_cell(host.client(), *key, number, arguments.cycles).await?;
        matrix.cells.push(Cell::of_run(*key, &run));
        if *key == released() {
            healthy = Some(run);
        }
    }
    let description = host.describe().await?;
    host.stop()?;
    let scale_runs = scale::measure(&arguments.output, arguments.leaked_pairs)?;
    output::print(&matrix_table(&matrix));
    if !scale_runs.is_empty() {
        output::print(&scale_table(&scale_runs));
    }
    let as_expected = matrix.as_expected();
    let shows_disease = matrix.includes_the_disease();
    if let Some(run) = healthy {
        let mut report = Report::of_run(description, started_at, run);
        report.matrix = Some(matrix);
        report.scale = scale_runs;
        publish(&arguments.output, "matrix", &report)?;
    }
    output::print(match (as_expected, shows_disease) {
        (true, true) => {
            "matrix: as expected: the disease shows where no fix is on, and nowhere else"
        }
        (true, false) => {
            "matrix: as expected, but the cell that must show the disease was left out"
        }
        (false, _) => "matrix: NOT as expected: see the cells marked above",
    });
    Ok(as_expected)
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
            port_policy: Some(match key.port_policy {
                PortPolicy::Fixed => ApiPolicy::Fixed,
                PortPolicy::Continue => ApiPolicy::Continue,
                PortPolicy::Random => ApiPolicy::Random,
            }),
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
    use super::*;

    #[test]
    fn the_matrix_has_every_combination_and_the_disease_in_both_orders() {
        let keys = keys();
        assert_eq!(keys.len(), 13);
        assert_eq!(keys.iter().filter(|key| key.monitor_first).count(), 12);
        assert!(keys.contains(&released()));
    }
}
