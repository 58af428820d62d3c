//! Nothing is lost when a process is killed.

use anyhow::{Context, ensure};
use machine_api::{EventType, MachineState};
use rustix::process::{Pid, Signal, kill_process};

use crate::stage::{DEADLINE, Stage, until};

pub(crate) async fn a_killed_supervisor_loses_no_machine(stage: &mut Stage) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    let before = stage.client.machine(&machine.id).await?;
    let count = stage.count(&machine).await?;
    stage.kill_supervisor()?;
    stage.start_supervisor().await?;
    let after = stage
        .client
        .reach(&machine.id, MachineState::Started, DEADLINE)
        .await?;
    ensure!(
        after.vmm_pid == before.vmm_pid,
        "{:?} {:?}",
        before.vmm_pid,
        after.vmm_pid
    );
    ensure!(
        after.generation == before.generation,
        "the machine was started again"
    );
    stage.counted_beyond(&machine, count).await?;
    stage.suspend(&machine).await?;
    stage.resume(&machine).await?;
    stage.counted_beyond(&machine, count).await?;
    Ok(())
}

pub(crate) async fn a_killed_vmm_is_noticed(stage: &mut Stage) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    let pid = stage
        .client
        .machine(&machine.id)
        .await?
        .vmm_pid
        .context("no VMM")?;
    let pid = Pid::from_raw(i32::try_from(pid)?).context("no pid")?;
    kill_process(pid, Signal::KILL)?;
    until("the machine to have left started", || async {
        let state = stage.client.machine(&machine.id).await?.state;
        Ok((state != MachineState::Started).then_some(()))
    })
    .await?;
    let events = stage.client.events(&machine.id, None).await?;
    ensure!(
        events.iter().any(|event| event.kind == EventType::Exit),
        "{events:?}"
    );
    Ok(())
}

pub(crate) async fn a_suspended_machine_survives_a_killed_supervisor(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    let count = stage.count(&machine).await?;
    stage.suspend(&machine).await?;
    stage.kill_supervisor()?;
    stage.start_supervisor().await?;
    let after = stage.client.machine(&machine.id).await?;
    ensure!(after.state == MachineState::Suspended, "{:?}", after.state);
    stage.resume(&machine).await?;
    stage.counted_beyond(&machine, count).await?;
    Ok(())
}
