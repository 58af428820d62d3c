//! A damaged image is never resumed silently.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, ensure};
use machine_api::{MachineState, StartKind};

use crate::stage::{DEADLINE, Stage, until};

/// Flips one bit of the byte at `offset`.
fn flip(path: &Path, offset: u64) -> anyhow::Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ 1], offset)?;
    Ok(())
}

pub(crate) async fn a_flipped_bit_in_the_saved_state_causes_a_cold_boot_with_the_reason(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    stage.suspend(&machine).await?;
    let image = stage.machine_folder(&machine).join("image");
    flip(&image.join("state.bin"), 100)?;
    stage.client.start(&machine.id).await?;
    let started = stage
        .client
        .reach(&machine.id, MachineState::Started, DEADLINE)
        .await?;
    let Some(StartKind::ColdBooted { reason }) = started.last_start else {
        anyhow::bail!("started as {:?}", started.last_start);
    };
    ensure!(
        reason.contains("checksum") || reason.contains("state.bin"),
        "{reason}"
    );
    Ok(())
}

pub(crate) async fn a_damaged_memory_file_fails_the_machine_and_names_the_range(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    stage.suspend(&machine).await?;
    let memory = stage.machine_folder(&machine).join("image/memory");
    // Within the kernel's read-only data, which no guest writes.
    let length = fs::metadata(&memory)?.len();
    ensure!(length > 32 << 20, "{length}");
    flip(&memory, 4096 + (17 << 20) + 5)?;
    stage.client.start(&machine.id).await?;
    let message = until("an event that names the damage", || async {
        let events = stage.client.events(&machine.id, None).await?;
        Ok(events.into_iter().find_map(|event| {
            let message = event.message?;
            (message.contains("damage") || message.contains("checksum")).then_some(message)
        }))
    })
    .await
    .context("the damage was not reported")?;
    ensure!(
        message.contains("0x") || message.contains("bytes"),
        "no range in {message:?}"
    );
    stage
        .client
        .reach(&machine.id, MachineState::Failed, DEADLINE)
        .await?;
    Ok(())
}
