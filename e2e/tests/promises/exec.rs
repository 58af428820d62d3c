//! Commands in a guest: output, exit codes, deadlines.

use anyhow::ensure;
use machine_api::ExecRequest;

use crate::stage::{Stage, config};

pub(crate) async fn exit_codes_and_both_outputs_arrive(stage: &mut Stage) -> anyhow::Result<()> {
    let machine = stage.boot(config(&["/bin/sleep", "600"])).await?;
    let answer = stage
        .shell(&machine, "echo out; echo err >&2; exit 9")
        .await?;
    ensure!(
        answer.stdout == "out\n" && answer.stderr == "err\n",
        "{answer:?}"
    );
    ensure!(answer.exit_code == 9, "{answer:?}");
    let request = ExecRequest {
        command: vec!["wc".to_owned(), "-c".to_owned()],
        stdin: Some("four".to_owned()),
        timeout: Some(30),
        ..ExecRequest::default()
    };
    let answer = stage.client.exec(&machine.id, &request).await?;
    ensure!(answer.stdout.trim() == "4", "{answer:?}");
    Ok(())
}

pub(crate) async fn a_command_that_takes_too_long_is_killed(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot(config(&["/bin/sleep", "600"])).await?;
    let request = ExecRequest {
        command: vec!["sleep".to_owned(), "500".to_owned()],
        timeout: Some(1),
        ..ExecRequest::default()
    };
    let answer = stage.client.exec(&machine.id, &request).await;
    let text = format!("{answer:?}");
    ensure!(
        answer.is_err() || answer.is_ok_and(|a| a.exit_signal == 9),
        "{text}"
    );
    let left = stage.shell(&machine, "ps | grep -c '[s]leep 500'").await?;
    ensure!(left.stdout.trim() == "0", "{left:?}");
    Ok(())
}

pub(crate) async fn a_missing_program_is_named(stage: &mut Stage) -> anyhow::Result<()> {
    let machine = stage.boot(config(&["/bin/sleep", "600"])).await?;
    let request = ExecRequest {
        command: vec!["no-such-program".to_owned()],
        timeout: Some(30),
        ..ExecRequest::default()
    };
    let answer = stage.client.exec(&machine.id, &request).await;
    let text = answer.map_or_else(
        |error| format!("{error:#?}"),
        |answer| format!("{answer:?}"),
    );
    ensure!(text.contains("no-such-program"), "{text}");
    Ok(())
}
