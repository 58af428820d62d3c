//! A suspended machine goes on as if nothing had happened.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use machine_api::{Guest, StartKind};

use crate::stage::{Stage, config, until};

pub(crate) async fn a_guest_lives_on_through_suspend_and_resume(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    let before = stage.boot_id(&machine).await?;
    for _ in 0..3 {
        let count = stage.count(&machine).await?;
        stage.suspend(&machine).await?;
        let timing = stage.resume(&machine).await?;
        ensure!(
            timing.start == Some(StartKind::Resumed),
            "{:?}",
            timing.start
        );
        stage.counted_beyond(&machine, count).await?;
    }
    let after = stage.boot_id(&machine).await?;
    ensure!(
        before == after,
        "the boot id changed from {before} to {after}"
    );
    Ok(())
}

pub(crate) async fn a_second_suspend_writes_only_what_changed(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    let first = stage
        .suspend(&machine)
        .await?
        .memory_bytes_written
        .context("no figure")?;
    stage.resume(&machine).await?;
    let second = stage
        .suspend(&machine)
        .await?
        .memory_bytes_written
        .context("no figure")?;
    ensure!(
        second > 0 && second < first / 2,
        "wrote {first} bytes, then {second}"
    );
    Ok(())
}

pub(crate) async fn the_wall_clock_is_right_after_a_resume(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    stage.suspend(&machine).await?;
    let suspended_at = SystemTime::now();
    until("five seconds to pass", || async {
        Ok((suspended_at.elapsed()?.as_secs() >= 5).then_some(()))
    })
    .await?;
    stage.resume(&machine).await?;
    let guest: u64 = stage
        .shell(&machine, "date +%s")
        .await?
        .stdout
        .trim()
        .parse()?;
    let host = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    ensure!(
        guest.abs_diff(host) <= 2,
        "the guest's clock says {guest}, the host's {host}"
    );
    Ok(())
}

pub(crate) async fn phases_sum_to_the_total(stage: &mut Stage) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    let suspend = stage.suspend(&machine).await?;
    let resume = stage.resume(&machine).await?;
    for timing in [suspend, resume] {
        let sum: f64 = timing.phases.iter().map(|phase| phase.ms).sum();
        let total = timing.total_ms;
        ensure!(
            (sum - total).abs() < 0.01,
            "phases sum to {sum}, the total is {total}"
        );
        let last = timing.phases.last().map(|phase| phase.name.as_str());
        ensure!(last == Some("unattributed"), "the last phase is {last:?}");
        ensure!(
            timing.phases.iter().all(|phase| phase.ms >= 0.0),
            "{:?}",
            timing.phases
        );
    }
    Ok(())
}

pub(crate) async fn many_processors_come_back(stage: &mut Stage) -> anyhow::Result<()> {
    let mut wanted = config(&["/bin/sleep", "600"]);
    wanted.guest = Some(Guest {
        cpus: 4,
        memory_mb: 256,
        ..Guest::default()
    });
    let machine = stage.boot(wanted).await?;
    for _ in 0..2 {
        stage.suspend(&machine).await?;
        stage.resume(&machine).await?;
    }
    // Each processor runs a shell pinned to it.
    let script = "for cpu in 0 1 2 3; do taskset -c $cpu sh -c 'echo ran'; done";
    let answer = stage.shell(&machine, script).await?;
    ensure!(answer.stdout.matches("ran").count() == 4, "{answer:?}");
    Ok(())
}

pub(crate) async fn output_is_neither_lost_nor_doubled_by_a_resume(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let script = "i=0; while :; do i=$((i+1)); echo line-$i; sleep 0.05; done";
    let machine = stage.boot(config(&["/bin/sh", "-c", script])).await?;
    let numbers = |lines: Vec<String>| -> Vec<u64> {
        lines
            .iter()
            .filter_map(|line| line.strip_prefix("line-")?.parse().ok())
            .collect()
    };
    for _ in 0..3 {
        stage.suspend(&machine).await?;
        stage.resume(&machine).await?;
    }
    let seen = until("output after the last resume", || async {
        let seen = numbers(stage.log_lines(&machine).await?);
        Ok((seen.len() > 60).then_some(seen))
    })
    .await?;
    let different: BTreeSet<u64> = seen.iter().copied().collect();
    ensure!(different.len() == seen.len(), "lines came twice");
    let last = *seen.last().context("no line")?;
    let count = u64::try_from(seen.len())?;
    ensure!(
        seen.first() == Some(&1) && last == count,
        "{count} lines up to number {last}"
    );
    Ok(())
}
