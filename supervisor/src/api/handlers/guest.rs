//! Requests to a guest: commands, signals, its processes.

use std::time::Duration;

use axum::Json;
use guest_protocol::{ExecSpec, ListeningSocket, Reply, Request};
use machine_api::{
    ErrorBody, ExecRequest, ExecResponse, ListedProcess, ListenSocket, Ok as Done, SignalRequest,
};
use tokio::time::timeout;

use crate::api::error::ApiError;
use crate::api::request::extract::{JsonBody, Nonce, Target};
use crate::guest::GuestError;
use crate::machine::request::LeaseCheck;
use crate::machine::{Handle, MachineError};
use crate::model::graceful_stop::signal_number;

/// Time of a command whose request gives none.
const EXEC_LIMIT_S: u32 = 60;
/// Most time of a command.
const EXEC_LIMIT_MOST_S: u32 = 3_600;
/// Time that the guest may take beyond the command's own.
const GRACE: Duration = Duration::from_secs(10);
/// Deadline of short calls.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// Waits for a guest's answer, within a deadline.
pub(crate) async fn ask<T>(
    handle: &Handle,
    what: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, MachineError> {
    let id = || handle.id().to_owned();
    match timeout(limit, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(MachineError::Guest {
            id: id(),
            what,
            source,
        }),
        Err(_) => Err(MachineError::GuestDeadline {
            id: id(),
            what,
            seconds: limit.as_secs(),
        }),
    }
}

/// Runs a command in the guest to its end.
#[utoipa::path(post, operation_id = "Machines_exec", path = "/v1/apps/{app}/machines/{machine}/exec", tag = "guest",
    params(("app" = String, Path), ("machine" = String, Path)), request_body = ExecRequest,
    responses((status = 200, body = ExecResponse), (status = "default", body = ErrorBody)))]
pub(crate) async fn exec(
    Target(handle): Target,
    JsonBody(request): JsonBody<ExecRequest>,
) -> Result<Json<ExecResponse>, ApiError> {
    let argv = argv(&request)?;
    let seconds = request
        .timeout
        .filter(|seconds| *seconds > 0)
        .unwrap_or(EXEC_LIMIT_S);
    let limit = Duration::from_secs(seconds.min(EXEC_LIMIT_MOST_S).into());
    let live = handle.live_soon().await?;
    let exec = ExecSpec {
        argv,
        ..ExecSpec::default()
    };
    let _user = handle.activity().add_user();
    let stdin = request.stdin.unwrap_or_default();
    let run = live.address.run_to_end(exec, stdin.as_bytes(), limit);
    let collected = ask(&handle, "run the command", limit + GRACE, run).await?;
    let exit = collected.exit;
    Ok(Json(ExecResponse {
        exit_code: exit.code.unwrap_or(-1),
        exit_signal: exit.signal.unwrap_or(0),
        stdout: String::from_utf8_lossy(&collected.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&collected.stderr).into_owned(),
        truncated: collected.truncated,
    }))
}

/// The program of a request and its arguments.
pub(crate) fn argv(request: &ExecRequest) -> Result<Vec<String>, ApiError> {
    let argv = match (request.command.is_empty(), &request.cmd) {
        (false, _) => request.command.clone(),
        (true, Some(text)) => machine_api::split_words(text)
            .ok_or_else(|| ApiError::invalid("cmd: a quote is not closed"))?,
        (true, None) => Vec::new(),
    };
    if argv.first().is_none_or(String::is_empty) || argv.iter().any(|word| word.contains('\0')) {
        return Err(ApiError::invalid("command: a program is needed"));
    }
    Ok(argv)
}

/// Sends a signal to the main process.
#[utoipa::path(post, operation_id = "Machines_signal", path = "/v1/apps/{app}/machines/{machine}/signal", tag = "guest",
    params(("app" = String, Path), ("machine" = String, Path)), request_body = SignalRequest,
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)))]
pub(crate) async fn signal(
    Target(handle): Target,
    Nonce(nonce): Nonce,
    JsonBody(request): JsonBody<SignalRequest>,
) -> Result<Json<Done>, ApiError> {
    let signal = signal_number(&request.signal)
        .ok_or_else(|| ApiError::invalid(format!("unknown signal {:?}", request.signal)))?;
    let live = handle.live_soon().await?;
    // Nothing of the record is needed; the driver checks the lease.
    handle.read(LeaseCheck::Nonce(nonce), |_| Ok(())).await?;
    let sent = live.address.execute(Request::Signal { signal });
    ask(&handle, "take the signal", ASK_LIMIT, sent).await?;
    Ok(Json(Done { ok: true }))
}

/// Lists the guest's processes.
#[utoipa::path(get, operation_id = "Machines_processes", path = "/v1/apps/{app}/machines/{machine}/ps", tag = "guest",
    params(("app" = String, Path), ("machine" = String, Path)),
    responses((status = 200, body = Vec<ListedProcess>), (status = "default", body = ErrorBody)))]
pub(crate) async fn processes(
    Target(handle): Target,
) -> Result<Json<Vec<ListedProcess>>, ApiError> {
    let live = handle.live_soon().await?;
    let call = live.address.call(Request::Processes, None);
    let (reply, stream) = ask(&handle, "list its processes", ASK_LIMIT, call).await?;
    let Reply::Processes { processes } = reply else {
        let source = stream.reader.bad_reply("processes");
        let id = handle.id().to_owned();
        return Err(MachineError::Guest {
            id,
            what: "list its processes",
            source,
        }
        .into());
    };
    let listed = processes.into_iter().map(|process| ListedProcess {
        pid: process.pid,
        command: process.command,
        cpu: process.cpu_ms / 1_000,
        rss: process.rss_kib.saturating_mul(1_024),
        directory: process.directory,
        rtime: process.running_s,
        stime: process.started_at_s,
        listen_sockets: process.listening.into_iter().map(listen_socket).collect(),
    });
    Ok(Json(listed.collect()))
}

fn listen_socket(socket: ListeningSocket) -> ListenSocket {
    ListenSocket {
        proto: socket.protocol,
        address: socket.address,
    }
}
