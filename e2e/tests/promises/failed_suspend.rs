//! A suspend that fails or is cancelled has no effect on the machine.

use std::process::Command;

use anyhow::{Context, ensure};
use machine_api::{MachineState, StartKind};

use crate::stage::{DEADLINE, Stage, until};

pub(crate) async fn a_suspend_on_a_full_disk_says_why_and_leaves_the_machine_running(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    let image = stage.machine_folder(&machine).join("image");
    std::fs::create_dir_all(&image)?;
    let mount = |arguments: &[&str]| -> anyhow::Result<()> {
        let output = Command::new(arguments[0])
            .args(&arguments[1..])
            .arg(&image)
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "small"])?;
    let boot_id = stage.boot_id(&machine).await?;
    stage.client.suspend(&machine.id).await?;
    let event = until("an event that says why", || async {
        let events = stage.client.events(&machine.id, None).await?;
        Ok(events.into_iter().find(|event| {
            let text = event.message.as_deref().unwrap_or_default().to_lowercase();
            text.contains("space")
        }))
    })
    .await
    .context("the failure was not reported")?;
    stage
        .client
        .reach(&machine.id, MachineState::Started, DEADLINE)
        .await?;
    ensure!(event.message.is_some(), "{event:?}");
    let count = stage.count(&machine).await?;
    stage.wait_for_count_beyond(&machine, count).await?;
    mount(&["umount"])?;
    stage.suspend(&machine).await?;
    stage.resume(&machine).await?;
    let after = stage.boot_id(&machine).await?;
    ensure!(boot_id == after, "the guest was booted again");
    Ok(())
}

/// How often a start is sent after a suspend. Only on a host that stalls does the suspend complete
/// before the start.
const TRIES: u32 = 5;

pub(crate) async fn a_start_cancels_a_suspend_and_the_same_vmm_continues(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    let boot_id = stage.boot_id(&machine).await?;
    let mut cancelled = false;
    for _ in 0..TRIES {
        let before = stage.client.machine(&machine.id).await?;
        let count = stage.count(&machine).await?;
        stage.client.suspend(&machine.id).await?;
        stage.client.start(&machine.id).await?;
        let after = stage
            .client
            .reach(&machine.id, MachineState::Started, DEADLINE)
            .await?;
        stage.wait_for_count_beyond(&machine, count).await?;
        if after.last_start != Some(StartKind::SuspendCancelled) {
            ensure!(
                after.last_start == Some(StartKind::Resumed),
                "{:?}",
                after.last_start
            );
            continue;
        }
        ensure!(
            after.vmm_pid == before.vmm_pid && after.generation == before.generation,
            "from {before:?} to {after:?}"
        );
        cancelled = true;
        break;
    }
    ensure!(cancelled, "each suspend completed before its start");
    let count = stage.count(&machine).await?;
    stage.suspend(&machine).await?;
    stage.resume(&machine).await?;
    stage.wait_for_count_beyond(&machine, count).await?;
    let after = stage.boot_id(&machine).await?;
    ensure!(boot_id == after, "the guest was booted again");
    Ok(())
}
