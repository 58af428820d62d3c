//! Nothing is lost when a process is killed.

use anyhow::ensure;
use e2e::counter;
use machine_api::{
    EventType, ExitEvent, Machine, MachineEvent, MachineState, Restart, RestartPolicy,
};

use crate::stage::{DEADLINE, Stage, config, until};

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
    // Without a wait: calls to a guest wait until the machine is adopted.
    stage.wait_for_count_beyond(&machine, count).await?;
    let events = stage.client.events(&machine.id, None).await?;
    let adopted = |event: &MachineEvent| event.kind == EventType::Adopt;
    ensure!(events.iter().any(adopted), "{events:?}");
    stage.suspend(&machine).await?;
    stage.resume(&machine).await?;
    stage.wait_for_count_beyond(&machine, count).await?;
    Ok(())
}

pub(crate) async fn a_killed_vmm_is_detected(stage: &mut Stage) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    stage.kill_vmm(&machine).await?;
    until("the machine to leave the state started", || async {
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
    stage.wait_for_count_beyond(&machine, count).await?;
    Ok(())
}

pub(crate) async fn a_machine_with_restart_always_boots_again_after_its_vmm_is_killed(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let mut wanted = config(&counter::command());
    wanted.restart = Some(Restart {
        policy: RestartPolicy::Always,
        max_retries: None,
    });
    let machine = stage.boot(wanted).await?;
    let boot_id = stage.boot_id(&machine).await?;
    let before = stage.kill_vmm(&machine).await?;
    let after = until("the machine to be started again", || async {
        let now = stage.client.machine(&machine.id).await?;
        let again = now.state == MachineState::Started && now.generation > before.generation;
        Ok(again.then_some(now))
    })
    .await?;
    ensure!(after.vmm_pid != before.vmm_pid, "{:?}", after.vmm_pid);
    ensure!(boot_id != stage.boot_id(&machine).await?, "the same guest");
    stage.wait_for_count_beyond(&machine, 0).await?;
    let exits = exits(stage, &machine).await?;
    ensure!(exits.len() == 1 && exits[0].restarting, "{exits:?}");
    Ok(())
}

pub(crate) async fn a_main_process_that_keeps_failing_is_restarted_only_as_often_as_configured(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let mut wanted = config(&["/bin/sh", "-c", "sleep 1; exit 3"]);
    wanted.restart = Some(Restart {
        policy: RestartPolicy::OnFailure,
        max_retries: Some(1),
    });
    let machine = stage.boot(wanted).await?;
    until("the supervisor to give up", || async {
        let events = stage.client.events(&machine.id, None).await?;
        let given_up = |event: &MachineEvent| {
            let message = event.message.as_deref().unwrap_or_default();
            message.contains("given up after 1 restarts")
        };
        Ok(events.iter().any(given_up).then_some(()))
    })
    .await?;
    let state = stage.client.machine(&machine.id).await?.state;
    ensure!(state == MachineState::Stopped, "{state}");
    let exits = exits(stage, &machine).await?;
    let codes: Vec<(i32, bool)> = exits
        .iter()
        .map(|exit| (exit.exit_code, exit.restarting))
        .collect();
    ensure!(codes == [(3, true), (3, false)], "{exits:?}");
    Ok(())
}

/// All exit events of the machine, oldest first.
async fn exits(stage: &Stage, machine: &Machine) -> anyhow::Result<Vec<ExitEvent>> {
    let mut events = stage.client.events(&machine.id, None).await?;
    events.reverse();
    let mut exits: Vec<ExitEvent> = events
        .into_iter()
        .filter(|event| event.kind == EventType::Exit)
        .filter_map(|event| event.request?.exit_event)
        .collect();
    // The end of the main process and that of its machine are reported one after the other.
    exits.dedup_by(|later, earlier| later == earlier);
    Ok(exits)
}
