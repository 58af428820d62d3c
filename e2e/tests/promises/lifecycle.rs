//! Everything else that users of Fly Machines do with a machine, by `mctl` on a real guest: signals,
//! metadata, updates, restarts, clones, leases.

use anyhow::{Context, ensure};
use machine_api::{CreateMachine, Init, MachineConfig, MachineState};
use serde_json::Value;

use crate::stage::{DEADLINE, Stage, config, until};

/// Reports each SIGUSR1 and otherwise waits.
const MAIN: &str = "trap 'echo got-usr1' USR1; while :; do sleep 0.1; done";

async fn json(stage: &Stage, arguments: &[&str]) -> anyhow::Result<Value> {
    let text = stage.mctl(arguments).await?.success_output()?;
    serde_json::from_str(&text).with_context(|| format!("mctl {arguments:?} printed {text}"))
}

/// The version of a machine, and the boot id of its guest.
async fn version(stage: &Stage, name: &str) -> anyhow::Result<(String, String)> {
    let machine = json(stage, &["status", name, "--json"]).await?;
    let instance = machine["instance_id"].as_str().context("no instance id")?;
    let read_boot_id = ["exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id"];
    let boot_id = stage.mctl(&read_boot_id).await?.success_output()?;
    Ok((instance.to_owned(), boot_id))
}

pub(crate) async fn signals_metadata_versions_restarts_and_clones_work_on_a_real_guest(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let run = ["run", "--name", "life", "--", "sh", "-c", MAIN];
    stage.mctl(&run).await?.success_output()?;
    let processes = stage.mctl(&["ps", "life"]).await?.success_output()?;
    ensure!(processes.contains("got-usr1"), "{processes}");
    stage
        .mctl(&["signal", "life", "--signal", "USR1"])
        .await?
        .success_output()?;
    until("the main process to get its signal", || async {
        let logs = stage.mctl(&["logs", "life"]).await?.success_output()?;
        Ok(logs.contains("got-usr1").then_some(()))
    })
    .await?;

    // `metadata set` makes no new version; the same change by `update` does.
    let (first, first_boot) = version(stage, "life").await?;
    stage
        .mctl(&["metadata", "set", "life", "team=shop"])
        .await?
        .success_output()?;
    let team = stage
        .mctl(&["metadata", "get", "life", "team"])
        .await?
        .success_output()?;
    ensure!(team.trim() == "shop", "{team:?}");
    ensure!(version(stage, "life").await?.0 == first, "a new version");
    let update = ["update", "life", "--metadata", "foo=bar", "--yes"];
    stage.mctl(&update).await?.success_output()?;
    let (second, second_boot) = version(stage, "life").await?;
    ensure!(second != first, "still version {first}");
    ensure!(second_boot != first_boot, "the guest was not booted again");

    stage.mctl(&["restart", "life"]).await?.success_output()?;
    let (third, third_boot) = version(stage, "life").await?;
    ensure!(third == second && third_boot != second_boot, "{third}");

    let clone = ["clone", "life", "--name", "twin"];
    stage.mctl(&clone).await?.success_output()?;
    stage
        .mctl(&["wait", "twin", "--state", "started"])
        .await?
        .success_output()?;
    let (_, twin_boot) = version(stage, "twin").await?;
    ensure!(twin_boot != third_boot, "both share one guest");
    let destroy = ["destroy", "--force", "--yes", "twin"];
    stage.mctl(&destroy).await?.success_output()?;

    let events = stage.mctl(&["events", "life"]).await?.success_output()?;
    for kind in ["launch", "start", "update", "restart"] {
        ensure!(events.contains(kind), "no {kind} in\n{events}");
    }
    Ok(())
}

pub(crate) async fn a_lease_refuses_requests_of_others_and_a_machine_can_be_cordoned(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let run = ["run", "--name", "held", "--", "sh", "-c", MAIN];
    stage.mctl(&run).await?.success_output()?;
    let lease = stage
        .mctl(&["lease", "acquire", "held"])
        .await?
        .success_output()?;
    let nonce = lease.trim();
    let refused = stage.mctl(&["stop", "held"]).await?;
    ensure!(
        refused.code() != Some(0) && refused.stderr.contains("lease"),
        "{}: {}",
        refused.text(),
        refused.stderr
    );
    stage
        .mctl(&["lease", "release", "held", "--lease", nonce])
        .await?
        .success_output()?;
    stage.mctl(&["cordon", "held"]).await?.success_output()?;
    let machine = json(stage, &["status", "held", "--json"]).await?;
    ensure!(machine["cordoned"] == true, "{machine}");
    stage.mctl(&["uncordon", "held"]).await?.success_output()?;
    stage.mctl(&["stop", "held"]).await?.success_output()?;
    Ok(())
}

pub(crate) async fn an_exit_event_reports_that_the_main_process_ran_out_of_memory(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let wanted = MachineConfig {
        init: Some(Init {
            exec: ["/bin/sh", "-c", "exec tail /dev/zero"]
                .map(str::to_owned)
                .to_vec(),
            ..Init::default()
        }),
        ..config(&["/bin/true"])
    };
    // It may have ended before the state started is observed, so the test does not wait for it.
    let request = CreateMachine {
        config: wanted,
        ..CreateMachine::default()
    };
    let machine = stage.client.create(&request).await?;
    stage
        .client
        .wait_until(&machine.id, MachineState::Stopped, None, DEADLINE)
        .await?;
    let events = stage.client.events(&machine.id, None).await?;
    let exits = events
        .iter()
        .filter_map(|event| event.request.as_ref()?.exit_event.as_ref());
    let killed = exits.clone().any(|exit| exit.oom_killed);
    ensure!(killed, "{:?}", exits.collect::<Vec<_>>());
    Ok(())
}
