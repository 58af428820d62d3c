//! `mctl` as the README shows it.

use anyhow::ensure;

use crate::stage::Stage;

pub(crate) async fn the_commands_of_the_readme_work(stage: &mut Stage) -> anyhow::Result<()> {
    let loop_ = "while :; do date; sleep 1; done";
    stage
        .mctl(&["run", "--name", "web", "--", "sh", "-c", loop_])
        .await?
        .printed()?;
    let list = stage.mctl(&["list"]).await?.printed()?;
    ensure!(list.contains("web") && list.contains("started"), "{list}");
    stage.mctl(&["suspend", "web"]).await?.printed()?;
    let status = stage.mctl(&["status", "web"]).await?.printed()?;
    ensure!(status.contains("suspended"), "{status}");
    stage.mctl(&["resume", "web"]).await?.printed()?;
    let timings = stage.mctl(&["timings", "web"]).await?.printed()?;
    ensure!(
        timings.contains("first_status") && timings.contains("unattributed"),
        "{timings}"
    );
    let logs = stage.mctl(&["logs", "web"]).await?.printed()?;
    ensure!(logs.contains("UTC"), "{logs}");
    stage.mctl(&["stop", "web"]).await?.printed()?;
    stage.mctl(&["start", "web"]).await?.printed()?;
    stage
        .mctl(&["destroy", "--force", "--yes", "web"])
        .await?
        .printed()?;
    let list = stage.mctl(&["list"]).await?.printed()?;
    ensure!(!list.contains("web"), "{list}");
    Ok(())
}

pub(crate) async fn doctor_finds_a_usable_host(stage: &mut Stage) -> anyhow::Result<()> {
    let text = stage.mctl(&["doctor"]).await?.printed()?;
    ensure!(text.contains("KVM") && text.contains("default"), "{text}");
    Ok(())
}
