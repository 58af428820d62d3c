//! `mctl`, as the README uses it.

use anyhow::ensure;
use kvm_host::emulator::Emulator;

use crate::stage::Stage;

pub(crate) async fn the_commands_in_the_readme_work(stage: &mut Stage) -> anyhow::Result<()> {
    let loop_ = "while :; do date; sleep 1; done";
    stage
        .mctl(&["run", "--name", "web", "--", "sh", "-c", loop_])
        .await?
        .success_output()?;
    let list = stage.mctl(&["list"]).await?.success_output()?;
    ensure!(list.contains("web") && list.contains("started"), "{list}");
    stage.mctl(&["suspend", "web"]).await?.success_output()?;
    let status = stage.mctl(&["status", "web"]).await?.success_output()?;
    ensure!(status.contains("suspended"), "{status}");
    stage.mctl(&["resume", "web"]).await?.success_output()?;
    let timings = stage.mctl(&["timings", "web"]).await?.success_output()?;
    ensure!(
        timings.contains("first_status") && timings.contains("unattributed"),
        "{timings}"
    );
    let logs = stage.mctl(&["logs", "web"]).await?.success_output()?;
    ensure!(logs.contains("UTC"), "{logs}");
    stage.mctl(&["stop", "web"]).await?.success_output()?;
    stage.mctl(&["start", "web"]).await?.success_output()?;
    stage
        .mctl(&["destroy", "--force", "--yes", "web"])
        .await?
        .success_output()?;
    let list = stage.mctl(&["list"]).await?.success_output()?;
    ensure!(!list.contains("web"), "{list}");
    Ok(())
}

pub(crate) async fn doctor_finds_a_usable_host(stage: &mut Stage) -> anyhow::Result<()> {
    let text = stage.mctl(&["doctor"]).await?.success_output()?;
    // In a virtual host it names the module and the emulated processor.
    let kvm = match Emulator::of_this_host() {
        Some(emulator) => emulator.to_string(),
        None => "hardware KVM".to_owned(),
    };
    ensure!(text.contains(&kvm) && text.contains("default"), "{text}");
    Ok(())
}
