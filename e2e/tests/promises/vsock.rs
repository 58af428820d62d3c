//! Connections across a resume: which side closes them, which leak, and what a leak costs.

use anyhow::{Context, ensure};
use machine_api::{
    AttemptOutcome, Machine, MachineConfig, PortPolicy, Timing, Verdict, VsockOptions,
};

use crate::stage::{Stage, config};

const CYCLES: u32 = 4;

pub(crate) fn leaky(port_policy: PortPolicy, eviction: bool) -> MachineConfig {
    MachineConfig {
        image: "leaky".to_owned(),
        vsock: Some(VsockOptions {
            port_policy: Some(port_policy),
            eviction: Some(eviction),
            monitor_first: Some(true),
        }),
        ..config(&["/bin/sleep", "6000"])
    }
}

async fn cycle(stage: &Stage, machine: &Machine) -> anyhow::Result<Timing> {
    stage.suspend(machine).await?;
    stage.resume(machine).await
}

/// Open sockets in the guest at this moment.
async fn open_sockets(stage: &Stage, machine: &Machine) -> anyhow::Result<u32> {
    let view = stage.client.vsock(&machine.id).await?;
    Ok(view.guest.context("init did not answer")?.sockets.total)
}

pub(crate) async fn the_guest_closes_idle_connections_of_older_generations(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot(config(&["/bin/sleep", "6000"])).await?;
    cycle(stage, &machine).await?;
    let first = open_sockets(stage, &machine).await?;
    for _ in 0..CYCLES {
        cycle(stage, &machine).await?;
        let view = stage.client.vsock(&machine.id).await?;
        let sockets = view.guest.context("init did not answer")?.sockets;
        ensure!(
            sockets.total == first,
            "{} sockets, {first} after one cycle",
            sockets.total
        );
        ensure!(sockets.older_generations == 0, "{sockets:?}");
        ensure!(
            view.diagnosis.verdict == Verdict::Healthy,
            "{:?}",
            view.diagnosis
        );
    }
    Ok(())
}

pub(crate) async fn the_leaky_init_leaks_one_socket_per_cycle_without_eviction(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot(leaky(PortPolicy::Random, false)).await?;
    cycle(stage, &machine).await?;
    let first = open_sockets(stage, &machine).await?;
    for _ in 0..CYCLES {
        cycle(stage, &machine).await?;
    }
    let last = open_sockets(stage, &machine).await?;
    ensure!(
        last == first + CYCLES,
        "{first} sockets, then {last} after {CYCLES} cycles"
    );
    let view = stage.client.vsock(&machine.id).await?;
    ensure!(
        view.diagnosis.verdict == Verdict::Leaking,
        "{:?}",
        view.diagnosis
    );
    Ok(())
}

pub(crate) async fn eviction_frees_the_pairs_of_a_leaky_init(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot(leaky(PortPolicy::Fixed, true)).await?;
    let mut totals = Vec::new();
    for _ in 0..=CYCLES {
        let timing = cycle(stage, &machine).await?;
        // A pair that is still in use is answered with RST; a late end of an evicted socket is recorded
        // as closed. On slow hosts an attempt may get no answer, which is no collision.
        let collided = timing
            .readiness
            .iter()
            .any(|one| matches!(one.outcome, AttemptOutcome::Reset | AttemptOutcome::Closed));
        ensure!(!collided, "{:?} {:?}", timing.readiness, timing.phases);
        let view = stage.client.vsock(&machine.id).await?;
        let evicted = view.host["pairs_evicted"].as_u64();
        ensure!(evicted > Some(0), "{}", view.host);
        let sockets = view.guest.context("init did not answer")?.sockets;
        ensure!(sockets.older_generations == 0, "{sockets:?}");
        totals.push(sockets.total);
    }
    ensure!(
        totals.iter().all(|total| *total == totals[0]),
        "open sockets by cycle: {totals:?}"
    );
    Ok(())
}

pub(crate) async fn fixed_ports_collide_with_leaked_pairs_and_the_attempts_show_it(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot(leaky(PortPolicy::Fixed, false)).await?;
    let mut attempts = Vec::new();
    for _ in 0..CYCLES {
        let timing = cycle(stage, &machine).await?;
        let mut failed = timing.readiness.clone();
        failed.retain(|one| one.outcome != AttemptOutcome::Ok);
        attempts.push(failed.len());
        let refused = |one: &machine_api::Attempt| {
            one.outcome == AttemptOutcome::Reset && one.local_port.is_some()
        };
        ensure!(failed.iter().all(refused), "{failed:?}");
    }
    let rises = attempts.windows(2).all(|pair| pair[1] > pair[0]);
    ensure!(rises, "failed attempts by cycle: {attempts:?}");
    let text = stage
        .mctl(&["status", &machine.id])
        .await?
        .success_output()?;
    ensure!(
        text.contains(" reset on ") && text.contains("those pairs are still open"),
        "mctl status does not explain the attempts:\n{text}"
    );
    let doctor = stage.mctl(&["doctor", "vsock", &machine.id]).await?;
    doctor.error_output(8)?;
    let text = doctor.text();
    ensure!(
        ["colliding", " reset on ", "since the VMM started, "]
            .iter()
            .all(|part| text.contains(part)),
        "{text}"
    );
    Ok(())
}
