//! The adapters of peers on real guests, with binaries that the caller supplies.

use std::path::Path;

use anyhow::{Context, ensure};
use cycles::{AttemptOutcome, RunEnd, Silent};
use e2e::artifacts::GuestImage;
use e2e::peer::PeerKind;
use e2e::run_here::run_peer;
use e2e::work::{Vmm, Work};

use crate::stage::Stage;

/// A peer's binary.
pub(crate) struct Binary {
    /// The variable with the path of a static binary on this host.
    pub(crate) variable: &'static str,
    /// Its path in the virtual KVM host.
    pub(crate) inside: &'static str,
}

pub(crate) const FIRECRACKER: Binary = Binary {
    variable: "MCTL_TEST_FIRECRACKER",
    inside: "/usr/bin/firecracker",
};
pub(crate) const CLOUD_HYPERVISOR: Binary = Binary {
    variable: "MCTL_TEST_CLOUD_HYPERVISOR",
    inside: "/usr/bin/cloud-hypervisor",
};

const CYCLES: u32 = 5;

pub(crate) async fn firecracker_runs_the_same_cycles_with_either_init(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    runs_the_same_cycles_with_either_init(PeerKind::Firecracker, &FIRECRACKER, stage).await
}

pub(crate) async fn cloud_hypervisor_runs_the_same_cycles_with_either_init(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    runs_the_same_cycles_with_either_init(PeerKind::CloudHypervisor, &CLOUD_HYPERVISOR, stage).await
}

async fn runs_the_same_cycles_with_either_init(
    kind: PeerKind,
    binary: &Binary,
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let binary = std::env::var_os(binary.variable)
        .with_context(|| format!("{} is not set", binary.variable))?;
    let images = stage.state().join("images");
    for (guest, monitor_first) in [(GuestImage::Default, false), (GuestImage::Leaky, true)] {
        let work = Work {
            name: "peer".to_owned(),
            vmm: Vmm::Peer {
                kind,
                binary: binary.clone().into(),
            },
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
        let run = run_peer(kind, Path::new(&binary), &images, &work, &mut Silent).await?;
        ensure!(run.end == RunEnd::Complete, "{guest:?}: {:?}", run.end);
        for cycle in &run.cycles {
            let last = cycle.readiness.last().context("no attempt")?;
            ensure!(last.outcome == AttemptOutcome::Ok, "{cycle:?}");
            ensure!(cycle.guest_open_vsocks.is_some(), "{cycle:?}");
            let reopened = cycle.resume_phases_ms.ms("monitor_reopened");
            ensure!(reopened.is_some(), "{cycle:?}");
        }
    }
    Ok(())
}
