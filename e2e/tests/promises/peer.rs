//! The Firecracker adapter on real guests, with a binary that the caller supplies.

use std::path::Path;

use anyhow::{Context, ensure};
use cycles::{AttemptOutcome, RunEnd, Silent};
use e2e::artifacts::GuestImage;
use e2e::run_here::run_firecracker;
use e2e::work::{Vmm, Work};

use crate::stage::Stage;

/// The variable with the path of a static Firecracker binary.
pub(crate) const FIRECRACKER_ENV: &str = "MCTL_TEST_FIRECRACKER";

const CYCLES: u32 = 5;

pub(crate) async fn firecracker_runs_the_same_cycles_with_either_init(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let binary = std::env::var_os(FIRECRACKER_ENV)
        .with_context(|| format!("{FIRECRACKER_ENV} is not set"))?;
    let images = stage.state().join("images");
    for (guest, monitor_first) in [(GuestImage::Default, false), (GuestImage::Leaky, true)] {
        let work = Work {
            name: "peer".to_owned(),
            vmm: Vmm::Firecracker(binary.clone().into()),
            cycles: CYCLES,
            most_cycles: CYCLES,
            memory_mib: 128,
            vcpus: 1,
            guest,
            expects_leaks: false,
            port_policy: None,
            eviction: None,
            monitor_first,
        };
        let run = run_firecracker(Path::new(&binary), &images, &work, &mut Silent).await?;
        ensure!(run.end == RunEnd::Complete, "{guest:?}: {:?}", run.end);
        for cycle in &run.cycles {
            let last = cycle.readiness.last().context("no attempt")?;
            ensure!(last.outcome == AttemptOutcome::Ok, "{cycle:?}");
            ensure!(cycle.guest_open_vsocks.is_some(), "{cycle:?}");
        }
    }
    Ok(())
}
