//! The call that runs a command in the guest and streams its standard input, output and error.
//! `machine_api::exec_stream` describes the messages.

use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use machine_api::exec_stream::{Channel, ClientMessage, ServerMessage};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use crate::call::{Call, DEFAULT_DEADLINE};
use crate::client::{Client, full_body};
use crate::connect::within;
use crate::error::Error;
use crate::paths;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A command to run with its streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables that are added to the environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Columns and rows of the terminal that the command runs on; none for no terminal.
    pub terminal: Option<(u16, u16)>,
    /// Time after which the guest kills the command.
    pub timeout: Option<Duration>,
}

/// Sends to a running command.
#[derive(Debug)]
pub struct CommandInput {
    action: String,
    socket: SplitSink<Socket, Message>,
}

/// Receives from a running command.
#[derive(Debug)]
pub struct CommandOutput {
    action: String,
    socket: SplitStream<Socket>,
}

/// A part of what a command sends; [`Piece::Ended`] is the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Standard output; with a terminal, all output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// The end of the command.
    Ended(CommandEnd),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandEnd {
    /// Exit code; -1 if a signal ended the command.
    pub exit_code: i32,
    /// Number of the signal that ended the command; 0 if none did.
    pub exit_signal: i32,
    /// Whether the command was killed at its timeout.
    pub timed_out: bool,
    /// Whether the guest's out-of-memory killer ended the command.
    pub oom_killed: bool,
}

impl Client {
    /// Runs a command and streams its input and output. The command ends if both halves are
    /// dropped.
    pub async fn exec_stream(
        &self,
        id: &str,
        command: &Command,
    ) -> Result<(CommandInput, CommandOutput), Error> {
        let action = format!(
            "run {:?} in machine {id}",
            command.argv.first().map_or("", String::as_str)
        );
        let uri = query(
            Call::new(
                Method::GET,
                paths::machine(&self.app, id, "/exec/stream"),
                action.clone(),
            ),
            command,
        );
        let key = generate_key();
        let request = self
            .request_head(Method::GET, &uri)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .body(full_body(Bytes::new()));
        let answer = self.dispatch(&action, DEFAULT_DEADLINE, request).await?;
        let status = answer.status().as_u16();
        let accepted = answer.headers().get(SEC_WEBSOCKET_ACCEPT);
        if status != 101
            || accepted.is_none_or(|value| value != derive_accept_key(key.as_bytes()).as_str())
        {
            return Err(Error::NotTheApi { action, status });
        }
        let upgraded = within(
            &action,
            "the switch to a stream",
            DEFAULT_DEADLINE,
            hyper::upgrade::on(answer),
        )
        .await?
        .map_err(|source| Error::Broken {
            action: action.clone(),
            source,
        })?;
        let io = TokioIo::new(upgraded);
        let (sink, stream) = WebSocketStream::from_raw_socket(io, Role::Client, None)
            .await
            .split();
        let input = CommandInput {
            action: action.clone(),
            socket: sink,
        };
        Ok((
            input,
            CommandOutput {
                action,
                socket: stream,
            },
        ))
    }
}

fn query(mut call: Call, command: &Command) -> String {
    for word in &command.argv {
        call = call.query("command", word);
    }
    for (name, value) in &command.env {
        call = call.query("env", format_args!("{name}={value}"));
    }
    call = call.optional_query("cwd", command.cwd.as_ref());
    if let Some((columns, rows)) = command.terminal {
        call = call
            .query("tty", true)
            .query("columns", columns)
            .query("rows", rows);
    }
    let timeout = command
        .timeout
        .map(|timeout| format!("{}ms", timeout.as_millis()));
    call.optional_query("timeout", timeout).into_uri()
}

impl CommandInput {
    /// Writes to standard input. Waits while the guest does not accept more.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(Channel::Stdin.byte());
        message.extend_from_slice(bytes);
        self.send(Message::Binary(message.into())).await
    }

    /// Closes standard input.
    pub async fn close(&mut self) -> Result<(), Error> {
        self.send_message(&ClientMessage::StdinEnd).await
    }

    /// Changes the size of the terminal.
    pub async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), Error> {
        self.send_message(&ClientMessage::Resize { columns, rows })
            .await
    }

    async fn send_message(&mut self, message: &ClientMessage) -> Result<(), Error> {
        let text = serde_json::to_string(message).expect("messages can be written as JSON");
        self.send(Message::Text(text.into())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Error> {
        self.socket
            .send(message)
            .await
            .map_err(|source| broken(&self.action, source))
    }
}

impl CommandOutput {
    /// The next piece. It is an error if the stream ends before [`Piece::Ended`].
    pub async fn next(&mut self) -> Result<Piece, Error> {
        loop {
            let message = match self.socket.next().await {
                Some(message) => message.map_err(|source| broken(&self.action, source))?,
                None => return Err(broken(&self.action, SocketError::ConnectionClosed)),
            };
            match message {
                Message::Binary(bytes) => match bytes.first().copied().and_then(Channel::from_byte)
                {
                    Some(Channel::Stdout) => return Ok(Piece::Stdout(bytes.slice(1..))),
                    Some(Channel::Stderr) => return Ok(Piece::Stderr(bytes.slice(1..))),
                    Some(Channel::Stdin) | None => {}
                },
                Message::Text(text) => return self.command_end(&text),
                Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
            }
        }
    }

    fn command_end(&self, text: &str) -> Result<Piece, Error> {
        let action = self.action.clone();
        match serde_json::from_str(text) {
            Ok(ServerMessage::Exit {
                exit_code,
                exit_signal,
                timed_out,
                oom_killed,
            }) => Ok(Piece::Ended(CommandEnd {
                exit_code,
                exit_signal,
                timed_out,
                oom_killed,
            })),
            Ok(ServerMessage::Error { message }) => Err(Error::Interrupted { action, message }),
            Err(source) => Err(Error::UnexpectedAnswer { action, source }),
        }
    }
}

fn broken(action: &str, source: SocketError) -> Error {
    Error::Stream {
        action: action.to_owned(),
        source: Box::new(source),
    }
}
