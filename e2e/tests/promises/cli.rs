//! `mctl` as the README shows it.

use anyhow::ensure;

use crate::stage::{Stage, printed};

pub(crate) async fn the_commands_of_the_readme_work(stage: &mut Stage) -> anyhow::Result<()> {
    let loop_ = "while :; do date; sleep 1; done";
    printed(&stage.mctl(&["run", "--name", "web", "--", "sh", "-c", loop_])?)?;
    let list = printed(&stage.mctl(&["list"])?)?;
    ensure!(list.contains("web") && list.contains("started"), "{list}");
    printed(&stage.mctl(&["suspend", "web"])?)?;
    let status = printed(&stage.mctl(&["status", "web"])?)?;
    ensure!(status.contains("suspended"), "{status}");
    printed(&stage.mctl(&["resume", "web"])?)?;
    let timings = printed(&stage.mctl(&["timings", "web"])?)?;
    ensure!(
        timings.contains("first_status") && timings.contains("unattributed"),
        "{timings}"
    );
    let logs = printed(&stage.mctl(&["logs", "web"])?)?;
    ensure!(logs.contains("UTC"), "{logs}");
    printed(&stage.mctl(&["stop", "web"])?)?;
    printed(&stage.mctl(&["start", "web"])?)?;
    printed(&stage.mctl(&["destroy", "--force", "--yes", "web"])?)?;
    let list = printed(&stage.mctl(&["list"])?)?;
    ensure!(!list.contains("web"), "{list}");
    Ok(())
}

pub(crate) async fn doctor_finds_a_usable_host(stage: &mut Stage) -> anyhow::Result<()> {
    let output = stage.mctl(&["doctor"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(text.contains("KVM") && text.contains("default"), "{text}");
    Ok(())
}
