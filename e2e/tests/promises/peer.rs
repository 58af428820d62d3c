//! The Firecracker adapter on real guests, with a binary that the caller supplies.

use std::path::Path;

use anyhow::{Context, ensure};
use cycles::{AttemptOutcome, RunEnd};
use e2e::artifacts::GuestImage;
use e2e::peer::{Work, run_cycles_in};

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
            cycles: CYCLES,
            memory_mib: 128,
            vcpus: 1,
            guest,
            monitor_first,
        };
        let run = run_cycles_in(Path::new(&binary), &images, &work).await?;
        ensure!(run.end == RunEnd::Complete, "{guest:?}: {:?}", run.end);
        for cycle in &run.cycles {
            let last = cycle.readiness.last().context("no attempt")?;
            ensure!(last.outcome == AttemptOutcome::Ok, "{cycle:?}");
            ensure!(cycle.guest_open_vsocks.is_some(), "{cycle:?}");
        }
    }
    Ok(())
}
