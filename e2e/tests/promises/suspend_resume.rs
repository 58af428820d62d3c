//! A resumed machine continues as if nothing had happened.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use machine_api::{Guest, StartKind};

use crate::stage::{Stage, config, until};

/// The phases that every resume has.
const RESUME_PHASES: [&str; 10] = [
    "spawn",
    "vmm_start",
    "image_open",
    "memory_map",
    "kvm_restore",
    "first_entry",
    "reset_acknowledged",
    "connect",
    "first_status",
    "monitor_reopened",
];

pub(crate) async fn a_guest_survives_suspend_and_resume(stage: &mut Stage) -> anyhow::Result<()> {
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
        stage.wait_for_count_beyond(&machine, count).await?;
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
    for name in RESUME_PHASES {
        let there = resume.phases.iter().any(|phase| phase.name == name);
        ensure!(there, "no phase {name} in {:?}", resume.phases);
    }
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

/// Fills a file, which is above 4 GiB since Linux allocates the highest memory first; makes each
/// processor count; prints the file's digest. The counters start no processes, like [`e2e::counter`]: so
/// many in real time leave one emulated processor no time for anything else.
const WORK: &str = "dd if=/dev/urandom of=/run/bytes bs=1M count=16 2>/dev/null
    mkfifo /run/never; exec 3<>/run/never
    for cpu in 0 1 2 3 4 5 6 7; do
        taskset -c $cpu sh -c 'while :; do i=$((i+1)); echo $i >/run/cpu-'$cpu'; read -t 0.2 -u 3 x; done' &
    done >/dev/null 2>&1
    sha256sum /run/bytes";

pub(crate) async fn eight_processors_and_memory_above_4_gib_are_restored(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let mut wanted = config(&["/bin/sleep", "600"]);
    wanted.guest = Some(Guest {
        cpus: 8,
        memory_mb: 4096,
        ..Guest::default()
    });
    let machine = stage.boot(wanted).await?;
    let digest = stage.shell(&machine, WORK).await?.stdout;
    ensure!(digest.contains("/run/bytes"), "no digest: {digest:?}");
    let counts = async || -> anyhow::Result<Vec<u64>> {
        let answer = stage.shell(&machine, "cat /run/cpu-*").await?.stdout;
        Ok(answer
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect())
    };
    for _ in 0..2 {
        let before = until("each processor to count", || async {
            let counts = counts().await?;
            Ok((counts.len() == 8).then_some(counts))
        })
        .await?;
        stage.suspend(&machine).await?;
        stage.resume(&machine).await?;
        until("each processor to go on counting", || async {
            let now = counts().await?;
            let all = now.len() == 8 && now.iter().zip(&before).all(|(now, then)| now > then);
            Ok(all.then_some(()))
        })
        .await?;
    }
    let after = stage.shell(&machine, "sha256sum /run/bytes").await?.stdout;
    ensure!(after == digest, "{digest:?} became {after:?}");
    Ok(())
}

pub(crate) async fn a_resume_neither_loses_nor_repeats_output(
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
    ensure!(different.len() == seen.len(), "lines were repeated");
    let last = *seen.last().context("no line")?;
    let count = u64::try_from(seen.len())?;
    ensure!(
        seen.first() == Some(&1) && last == count,
        "{count} lines up to number {last}"
    );
    Ok(())
}
