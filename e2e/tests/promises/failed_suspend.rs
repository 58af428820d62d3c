//! A suspend that fails costs nothing.

use std::process::Command;

use anyhow::{Context, ensure};
use machine_api::MachineState;

use crate::stage::{DEADLINE, Stage, until};

pub(crate) async fn a_full_disk_leaves_the_machine_running_and_says_so(
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
    let boot_id = stage
        .shell(&machine, "cat /proc/sys/kernel/random/boot_id")
        .await?
        .stdout;
    stage.client.suspend(&machine.id).await?;
    let event = until("an event that says why", || async {
        let events = stage.client.events(&machine.id, None).await?;
        Ok(events.into_iter().find(|event| {
            let text = event.message.as_deref().unwrap_or_default().to_lowercase();
            text.contains("space")
        }))
    })
    .await
    .context("the failure was not told")?;
    stage
        .client
        .reach(&machine.id, MachineState::Started, DEADLINE)
        .await?;
    ensure!(event.message.is_some(), "{event:?}");
    let count = stage.count(&machine).await?;
    stage.counted_beyond(&machine, count).await?;
    mount(&["umount"])?;
    stage.suspend(&machine).await?;
    stage.resume(&machine).await?;
    let after = stage
        .shell(&machine, "cat /proc/sys/kernel/random/boot_id")
        .await?
        .stdout;
    ensure!(boot_id == after, "the guest was booted again");
    Ok(())
}
