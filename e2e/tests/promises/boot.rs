//! A machine boots, runs its main process, and stops in order.

use std::path::Path;

use anyhow::ensure;
use machine_api::{
    EventType, ExitEvent, Guest, Machine, MachineConfig, MachineState, Mount, StopRequest,
};

use crate::stage::{DEADLINE, Stage, config, until};

pub(crate) async fn a_machine_boots_and_its_output_is_logged(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let script = "echo to-stdout; echo to-stderr >&2; sleep 600";
    let machine = stage.boot(config(&["/bin/sh", "-c", script])).await?;
    until("both lines to arrive", || async {
        let lines = stage.log_lines(&machine).await?;
        let has = |wanted: &str| lines.iter().any(|line| line == wanted);
        Ok((has("to-stdout") && has("to-stderr")).then_some(()))
    })
    .await
}

pub(crate) async fn a_machine_has_the_processors_and_memory_it_was_given(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let mut wanted = config(&["/bin/sleep", "600"]);
    // Beyond 3 GiB, the rest of memory is above 4 GiB.
    wanted.guest = Some(Guest {
        cpus: 4,
        memory_mb: 3584,
        ..Guest::default()
    });
    let machine = stage.boot(wanted).await?;
    let answer = stage
        .shell(&machine, "nproc; grep MemTotal /proc/meminfo")
        .await?;
    let words: Vec<&str> = answer.stdout.split_whitespace().collect();
    ensure!(
        words.first() == Some(&"4"),
        "nproc printed {:?}",
        answer.stdout
    );
    let total_kib: u64 = words.get(2).unwrap_or(&"0").parse()?;
    ensure!(
        total_kib > 3_300_000,
        "the guest sees {total_kib} KiB of 3584 MiB"
    );
    Ok(())
}

pub(crate) async fn a_machine_stops_when_its_main_process_ends_and_reports_the_exit_code(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage
        .boot(config(&["/bin/sh", "-c", "sleep 1; exit 7"]))
        .await?;
    stage
        .client
        .reach(&machine.id, MachineState::Stopped, DEADLINE)
        .await?;
    let exit = exit_event(stage, &machine).await?;
    ensure!(exit.exit_code == 7 && !exit.requested_stop, "{exit:?}");
    Ok(())
}

pub(crate) async fn stop_sends_the_requested_signal_to_the_main_process(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let script = "trap 'echo got-int; exit 3' INT; echo ready; while :; do sleep 0.1; done";
    let machine = stage.boot(config(&["/bin/sh", "-c", script])).await?;
    // A machine is started when init answers. That may be before the shell has set its trap.
    until("the main process to be ready", || async {
        let lines = stage.log_lines(&machine).await?;
        Ok(lines.iter().any(|line| line == "ready").then_some(()))
    })
    .await?;
    let how = StopRequest {
        signal: Some("SIGINT".to_owned()),
        timeout: Some("30s".to_owned()),
    };
    stage.client.stop(&machine.id, &how).await?;
    stage
        .client
        .reach(&machine.id, MachineState::Stopped, DEADLINE)
        .await?;
    let exit = exit_event(stage, &machine).await?;
    ensure!(exit.exit_code == 3 && exit.requested_stop, "{exit:?}");
    let lines = stage.log_lines(&machine).await?;
    ensure!(lines.iter().any(|line| line == "got-int"), "{lines:?}");
    Ok(())
}

/// A machine that sleeps, with a new disk in the file `disk`, mounted at `/data`.
pub(crate) fn config_with_disk(disk: &Path) -> anyhow::Result<MachineConfig> {
    e2e::disk::make(disk)?;
    let mut config = config(&["/bin/sleep", "600"]);
    config.mounts = vec![Mount {
        volume: disk.display().to_string(),
        path: "/data".to_owned(),
        read_only: false,
    }];
    Ok(config)
}

pub(crate) async fn a_disk_keeps_what_the_guest_wrote(stage: &mut Stage) -> anyhow::Result<()> {
    let disk = stage.scratch().join("disk.raw");
    let machine = stage.boot(config_with_disk(&disk)?).await?;
    stage
        .shell(&machine, "echo kept > /data/file && sync")
        .await?;
    stage.suspend(&machine).await?;
    stage.resume(&machine).await?;
    stage
        .client
        .stop(&machine.id, &StopRequest::default())
        .await?;
    stage
        .client
        .reach(&machine.id, MachineState::Stopped, DEADLINE)
        .await?;
    stage.client.start(&machine.id).await?;
    stage
        .client
        .reach(&machine.id, MachineState::Started, DEADLINE)
        .await?;
    let answer = stage.shell(&machine, "cat /data/file").await?;
    ensure!(answer.stdout == "kept\n", "{answer:?}");
    Ok(())
}

async fn exit_event(stage: &Stage, machine: &Machine) -> anyhow::Result<ExitEvent> {
    until("an exit event", || async {
        let events = stage.client.events(&machine.id, None).await?;
        let exit = events
            .into_iter()
            .find(|event| event.kind == EventType::Exit);
        Ok(exit
            .and_then(|event| event.request)
            .and_then(|request| request.exit_event))
    })
    .await
}
