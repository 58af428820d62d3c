//! The memory of a suspended guest knows what is on its disk, so that never runs over another disk.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, ensure};
use machine_api::{MachineState, StartKind};

use crate::boot::config_with_disk;
use crate::stage::{DEADLINE, Stage};

pub(crate) async fn a_disk_that_was_written_meanwhile_keeps_its_machine_suspended_until_its_user_decides(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let disk = stage.scratch().join("disk.raw");
    let machine = stage.boot(config_with_disk(&disk)?).await?;
    let boot_id = stage.boot_id(&machine).await?;
    stage
        .shell(&machine, "echo kept > /data/file && sync")
        .await?;
    stage.suspend(&machine).await?;

    // The boot block of ext2, which no guest looks at: it is the write that counts, not what is written.
    let file = File::options().write(true).open(&disk)?;
    file.write_all_at(b"x", 0)?;
    let refused = stage.mctl(&["start", &machine.id]).await?;
    ensure!(refused.code() == Some(1), "{refused:?}");
    for words in ["disk.raw", "was written to", "--cold"] {
        ensure!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    let shown = stage.client.machine(&machine.id).await?;
    ensure!(shown.state == MachineState::Suspended, "{:?}", shown.state);
    let manifest = stage.machine_folder(&machine).join("image/manifest.json");
    ensure!(manifest.exists(), "its image is gone");

    let cold = stage.mctl(&["start", "--cold", &machine.id]).await?;
    cold.success_output()?;
    let started = stage
        .client
        .reach(&machine.id, MachineState::Started, DEADLINE)
        .await?;
    let start = started.last_start.context("it was started")?;
    ensure!(
        matches!(start, StartKind::ColdBooted { .. }),
        "started as {start:?}"
    );
    ensure!(
        stage.boot_id(&machine).await? != boot_id,
        "it is the guest of before"
    );
    let kept = stage.shell(&machine, "cat /data/file").await?;
    ensure!(kept.stdout == "kept\n", "{kept:?}");
    Ok(())
}
