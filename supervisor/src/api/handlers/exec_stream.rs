//! A command in the guest over a WebSocket. `machine_api::exec_stream` describes the frames.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::stream::SplitStream;
use futures_util::{Sink, SinkExt, StreamExt};
use guest_protocol::{ExecSpec, Frame, Request, StreamEnd, TerminalSize};
use machine_api::ErrorBody;
use machine_api::exec_stream::{Channel, ClientMessage, ServerMessage};
use tokio::time::timeout;

use crate::api::error::ApiError;
use crate::api::handlers::guest::ask;
use crate::api::request::extract::{PairParams, Target, is_set};
use crate::duration;
use crate::error_chain::error_chain;
use crate::guest::{GuestError, GuestReader, GuestStream, GuestWriter, OwnedFrame};
use crate::machine::activity::UserGuard;
use crate::model::guest_share::bounded_text;

/// Deadline for the guest to start the command.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// Largest message of a client.
const MESSAGE_BYTES: usize = 1 << 20;
/// After so much silence of the command it is checked that the client is still there. Without that, a
/// command that neither prints nor reads would keep the connection of one that has gone away.
const PROBE_AFTER: Duration = Duration::from_secs(30);
/// Bytes of standard input in a frame.
const STDIN_BYTES: usize = 64 << 10;

/// Runs a command with its standard streams. Query: `command` (once per word), `env` (`K=V`),
/// `cwd`, `tty` with `columns` and `rows`, `timeout`.
#[utoipa::path(get, operation_id = "Machines_exec_stream_open", path = "/v1/apps/{app}/machines/{machine}/exec/stream", tag = "guest",
    params(("app" = String, Path), ("machine" = String, Path), ("command" = Vec<String>, Query),
        ("env" = Option<Vec<String>>, Query), ("cwd" = Option<String>, Query),
        ("tty" = Option<bool>, Query), ("columns" = Option<u16>, Query),
        ("rows" = Option<u16>, Query), ("timeout" = Option<String>, Query)),
    responses((status = 101, description = "the stream follows"),
        (status = "default", body = ErrorBody)))]
pub(crate) async fn open(
    Target(handle): Target,
    PairParams(pairs): PairParams,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let (exec, timeout_ms) = parse(&pairs)?;
    let upgrade = upgrade.map_err(|error| ApiError::no_upgrade(&error.body_text()))?;
    let live = handle.live_soon().await?;
    let request = Request::Exec { exec, timeout_ms };
    let stream = ask(
        &handle,
        "start the command",
        OPEN_LIMIT,
        live.address.open(request),
    )
    .await?;
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES);
    let user = handle.activity().add_user();
    Ok(upgrade.on_upgrade(move |socket| carry(socket, stream, user)))
}

fn parse(pairs: &[(String, String)]) -> Result<(ExecSpec, u64), ApiError> {
    let all = |name: &str| -> Vec<String> {
        pairs
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
            .collect()
    };
    let one = |name: &str| all(name).into_iter().next();
    let argv = all("command");
    if argv.first().is_none_or(String::is_empty) || argv.iter().any(|word| word.contains('\0')) {
        return Err(ApiError::invalid("command: a program is needed"));
    }
    let mut env = BTreeMap::new();
    for pair in all("env") {
        let (key, value) = pair
            .split_once('=')
            .filter(|(key, value)| !key.is_empty() && !key.contains('\0') && !value.contains('\0'))
            .ok_or_else(|| ApiError::invalid(format!("env: {pair:?} is not K=V")))?;
        env.insert(key.to_owned(), value.to_owned());
    }
    let cwd = one("cwd");
    if cwd.as_ref().is_some_and(|path| path.contains('\0')) {
        return Err(ApiError::invalid("cwd: zero bytes are not allowed"));
    }
    let terminal = if is_set(one("tty").as_deref())? {
        let size = |name, usual| match one(name) {
            Some(text) => text
                .parse::<u16>()
                .map_err(|_| ApiError::invalid(format!("{name}: {text:?} is not a size"))),
            None => Ok(usual),
        };
        Some(TerminalSize {
            columns: size("columns", 80)?,
            rows: size("rows", 24)?,
        })
    } else {
        None
    };
    let limit = one("timeout")
        .map(|text| duration::parse(&text))
        .transpose();
    let limit = limit.map_err(|error| ApiError::invalid(error.to_string()))?;
    let timeout_ms = limit.map_or(0, |limit| {
        u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
    });
    Ok((
        ExecSpec {
            argv,
            env,
            cwd,
            terminal,
        },
        timeout_ms,
    ))
}

/// Carries both ways until the command ends or the client leaves, which ends the command.
async fn carry(socket: WebSocket, stream: GuestStream, _user: UserGuard) {
    let (mut to_client, from_client) = socket.split();
    let end = tokio::select! {
        end = send_output(stream.reader, &mut to_client) => end,
        // The input may end while the command runs; this ends only when the client is gone.
        () = feed(from_client, stream.writer) => None,
    };
    if let Some(end) = end {
        let text = serde_json::to_string(&end).unwrap_or_default();
        let _ = to_client.send(Message::Text(text.into())).await;
    }
    let _ = to_client.close().await;
}

async fn send_output(
    mut reader: GuestReader,
    client: &mut (impl Sink<Message> + Unpin),
) -> Option<ServerMessage> {
    loop {
        let next = match timeout(PROBE_AFTER, reader.next()).await {
            Ok(next) => next,
            Err(_) => {
                client.send(Message::Ping(Bytes::new())).await.ok()?;
                continue;
            }
        };
        let (channel, bytes) = match next {
            Ok(Some(OwnedFrame::Stdout(bytes))) => (Channel::Stdout, bytes),
            Ok(Some(OwnedFrame::Stderr(bytes))) => (Channel::Stderr, bytes),
            Ok(Some(OwnedFrame::Json(payload))) => return Some(end_of(&payload)),
            Ok(Some(OwnedFrame::Data(_)) | None) => {
                let message = "the connection to the guest broke".to_owned();
                return Some(ServerMessage::Error { message });
            }
            Err(error) => {
                return Some(ServerMessage::Error {
                    message: error_chain(&error),
                });
            }
        };
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel.byte());
        message.extend_from_slice(&bytes);
        client
            .send(Message::Binary(Bytes::from(message)))
            .await
            .ok()?;
    }
}

fn end_of(payload: &[u8]) -> ServerMessage {
    match serde_json::from_slice(payload) {
        Ok(StreamEnd::Exited(exit)) => ServerMessage::Exit {
            exit_code: exit.code.unwrap_or(-1),
            exit_signal: exit.signal.unwrap_or(0),
            timed_out: exit.timed_out,
            oom_killed: exit.oom_killed,
        },
        Ok(StreamEnd::Refused(refusal)) => ServerMessage::Error {
            message: bounded_text(&refusal.message),
        },
        Ok(StreamEnd::Complete { .. }) | Err(_) => ServerMessage::Error {
            message: "guest-init sent an invalid end of the command".to_owned(),
        },
    }
}

/// Passes the client's input on to the guest; returns when the client is gone.
async fn feed(mut client: SplitStream<WebSocket>, mut guest: GuestWriter) {
    while let Some(Ok(message)) = client.next().await {
        let sent = match message {
            Message::Binary(bytes) => match bytes.split_first() {
                Some((&channel, rest)) if channel == Channel::Stdin.byte() => {
                    send_input(&mut guest, rest).await
                }
                _ => return,
            },
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ClientMessage::Resize { columns, rows }) => {
                    guest.send_json(&TerminalSize { columns, rows }).await
                }
                Ok(ClientMessage::StdinEnd) => guest.send(Frame::Stdin(&[])).await,
                Err(_) => return,
            },
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => Ok(()),
        };
        if sent.is_err() {
            // The command may have ended; its output and its exit still arrive.
            return std::future::pending().await;
        }
    }
}

async fn send_input(guest: &mut GuestWriter, bytes: &[u8]) -> Result<(), GuestError> {
    for chunk in bytes.chunks(STDIN_BYTES) {
        guest.send(Frame::Stdin(chunk)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_util::sink;
    use tokio::time::Instant;

    use super::*;
    use crate::guest::testing::connected_to;

    #[tokio::test(start_paused = true)]
    async fn a_silent_command_does_not_keep_the_connection_of_a_client_that_has_gone_away() {
        let (stream, _kept_open) = connected_to(b"").await;
        // There at the first look, and gone at the second.
        let mut client = Box::pin(sink::unfold(0, async |looks, message| {
            assert_eq!(message, Message::Ping(Bytes::new()));
            if looks == 1 { Err(()) } else { Ok(looks + 1) }
        }));
        let begun = Instant::now();
        let output = send_output(stream.reader, &mut client);
        let end = timeout(PROBE_AFTER * 3, output).await;
        assert!(end.expect("it ends").is_none());
        assert_eq!(begun.elapsed(), PROBE_AFTER * 2);
    }
}
