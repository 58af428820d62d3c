//! Commands in a guest: input, output, exit codes, deadlines; through the API and `mctl`.

use anyhow::ensure;
use machine_api::ExecRequest;

use crate::bytes;
use crate::stage::{Stage, config};

pub(crate) async fn exec_returns_the_exit_code_and_both_output_streams(
    stage: &mut Stage,
) -> anyhow::Result<()> {
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

pub(crate) async fn the_error_for_a_missing_program_names_it(
    stage: &mut Stage,
) -> anyhow::Result<()> {
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

pub(crate) async fn mctl_exec_passes_streams_and_exit_codes_like_a_local_command(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot(config(&["/bin/sleep", "600"])).await?;
    let id = machine.id.as_str();
    let sh = |script| ["exec", "-i", id, "--", "sh", "-c", script];
    let input = bytes::pattern(700_000, 3);
    let output = stage
        .mctl_with_input(&sh("cat; echo to-stderr >&2; exit 9"), &input)
        .await?;
    let stderr = output.error_output(9)?;
    ensure!(stderr == "to-stderr\n", "{stderr:?}");
    bytes::ensure_same(&output.stdout, &input)?;

    let settings = ["exec", "--env", "WORD=carried", "--cwd", "/tmp", id, "--"];
    let command = ["sh", "-c", "echo $WORD in $PWD; cat"];
    let arguments = [&settings[..], &command].concat();
    let output = stage
        .mctl_with_input(&arguments, b"not for this command")
        .await?;
    let text = output.success_output()?;
    ensure!(text == "carried in /tmp\n", "{text:?}");

    stage.mctl(&sh("kill -9 $$")).await?.error_output(137)?;
    let slow = ["exec", "--timeout", "1s", id, "--", "sleep", "500"];
    let output = stage.mctl(&slow).await?;
    let stderr = output.error_output(137)?;
    ensure!(stderr.contains("timeout"), "{stderr}");
    let output = stage.mctl(&["exec", id, "--", "no-such-program"]).await?;
    let stderr = output.error_output(125)?;
    ensure!(stderr.contains("no-such-program"), "{stderr}");
    Ok(())
}
