//! Logs: a machine's output is kept, and any part of it can be read.

use std::process::Stdio;

use anyhow::{Context, ensure};
use machine_api::{LogLine, LogSource, Machine};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use crate::stage::{DEADLINE, Stage, config, until};

/// A numbered line every 100 ms.
const SCRIPT: &str = "i=0; while :; do i=$((i+1)); echo line-$i; sleep 0.1; done";

fn number(line: &LogLine) -> Option<u64> {
    line.text.strip_prefix("line-")?.parse().ok()
}

async fn logs(stage: &Stage, machine: &Machine, options: &[&str]) -> anyhow::Result<Vec<LogLine>> {
    let arguments = [&["logs", "--json", &machine.id], options].concat();
    let text = stage.mctl(&arguments).await?.success_output()?;
    let lines = text.lines().map(serde_json::from_str::<LogLine>);
    Ok(lines.collect::<Result<_, _>>()?)
}

pub(crate) async fn logs_survive_a_resume_and_are_selected_by_number_time_and_follow(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot(config(&["/bin/sh", "-c", SCRIPT])).await?;
    let numbered = |lines: Vec<LogLine>| -> Vec<LogLine> {
        let is_numbered = |line: &LogLine| number(line).is_some();
        lines.into_iter().filter(is_numbered).collect()
    };
    let before = until("ten lines", || async {
        let lines = numbered(logs(stage, &machine, &[]).await?);
        Ok((lines.len() >= 10).then_some(lines))
    })
    .await?;
    let mut follower = tokio::process::Command::from(stage.mctl_command(
        &[],
        &["logs", "--json", "--follow", "--tail", "0", &machine.id],
    )?)
    .stdin(Stdio::null())
    .stdout(Stdio::piped())
    .kill_on_drop(true)
    .spawn()?;
    let output = follower.stdout.take().context("no output")?;
    let mut followed = BufReader::new(output).lines();
    let mut next = async || -> anyhow::Result<u64> {
        loop {
            let line = timeout(DEADLINE, followed.next_line()).await;
            let line = line
                .context("--follow printed no line")??
                .context("--follow ended")?;
            if let Some(number) = number(&serde_json::from_str(&line)?) {
                return Ok(number);
            }
        }
    };
    let mut last_followed = next().await?;
    ensure!(last_followed > 10, "--tail 0 shows line {last_followed}");
    stage.suspend(&machine).await?;
    let after_suspend = numbered(logs(stage, &machine, &[]).await?);
    ensure!(
        after_suspend.starts_with(&before),
        "lines were lost by the suspend"
    );
    let count_before = after_suspend.last().and_then(number).unwrap_or(0);
    stage.resume(&machine).await?;
    let after = until("lines after the resume", || async {
        let lines = numbered(logs(stage, &machine, &[]).await?);
        let last = lines.last().and_then(number).unwrap_or(0);
        Ok((last > count_before + 20).then_some(lines))
    })
    .await?;
    ensure!(
        after.starts_with(&after_suspend),
        "lines were lost by the resume"
    );
    let last = after.last().and_then(number).context("no line")?;
    while last_followed < last {
        let number = next().await?;
        ensure!(
            number == last_followed + 1,
            "{number} follows {last_followed}"
        );
        last_followed = number;
    }

    let tail = logs(stage, &machine, &["--tail", "3"]).await?;
    ensure!(tail.len() == 3, "{tail:?}");
    let from = &before[5];
    let since = numbered(logs(stage, &machine, &["--since", &from.time]).await?);
    let known = &after[5..];
    ensure!(
        since.starts_with(known),
        "since {}: {:?}",
        from.time,
        since.first()
    );
    let sources = logs(stage, &machine, &[]).await?;
    for source in [LogSource::Stdout, LogSource::Console] {
        ensure!(
            sources.iter().any(|line| line.source == source),
            "no line from {source:?}"
        );
    }
    Ok(())
}
