//! A command in the guest with its standard streams: input, output and errors as they come,
//! an optional terminal, and how it ended. Frames are those of `machine_api::exec_stream`.

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

use crate::call::{Call, QUICK, whole};
use crate::connect::within;
use crate::machines::of;
use crate::{Client, Error};

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A command to run with its streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to its environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Columns and rows of a terminal, if it gets one.
    pub terminal: Option<(u16, u16)>,
    /// The guest kills it after this time.
    pub timeout: Option<Duration>,
}

/// The way to the command.
#[derive(Debug)]
pub struct CommandInput {
    what: String,
    socket: SplitSink<Socket, Message>,
}

/// The way back.
#[derive(Debug)]
pub struct CommandOutput {
    what: String,
    socket: SplitStream<Socket>,
}

/// What comes back, in order; [`Piece::Ended`] is the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Standard output; with a terminal everything.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// How it ended.
    Ended(CommandEnd),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandEnd {
    /// -1 if a signal ended it.
    pub exit_code: i32,
    /// 0 if none.
    pub exit_signal: i32,
    /// It was killed at its timeout.
    pub timed_out: bool,
    /// The guest ran out of memory.
    pub oom_killed: bool,
}

impl Client {
    /// Runs a command with its streams. Dropping both ends ends the command.
    pub async fn exec_stream(
        &self,
        id: &str,
        command: &Command,
    ) -> Result<(CommandInput, CommandOutput), Error> {
        let what = format!(
            "run {:?} in {id}",
            command.argv.first().map_or("", String::as_str)
        );
        let uri = query(
            Call::new(Method::GET, of(id, "/exec/stream"), what.clone()),
            command,
        );
        let key = generate_key();
        let request = self
            .head(Method::GET, &uri)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .body(whole(Bytes::new()));
        let answer = self.dispatch(&what, QUICK, request).await?;
        let status = answer.status().as_u16();
        let accepted = answer.headers().get(SEC_WEBSOCKET_ACCEPT);
        if status != 101
            || accepted.is_none_or(|value| value != derive_accept_key(key.as_bytes()).as_str())
        {
            return Err(Error::Foreign { what, status });
        }
        let upgraded = within(
            &what,
            "the switch to a stream",
            QUICK,
            hyper::upgrade::on(answer),
        )
        .await?
        .map_err(|source| Error::Broken {
            what: what.clone(),
            source,
        })?;
        let io = TokioIo::new(upgraded);
        let (sink, stream) = WebSocketStream::from_raw_socket(io, Role::Client, None)
            .await
            .split();
        let input = CommandInput {
            what: what.clone(),
            socket: sink,
        };
        Ok((
            input,
            CommandOutput {
                what,
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
    call = call.maybe_query("cwd", command.cwd.as_ref());
    if let Some((columns, rows)) = command.terminal {
        call = call
            .query("tty", true)
            .query("columns", columns)
            .query("rows", rows);
    }
    let timeout = command
        .timeout
        .map(|timeout| format!("{}ms", timeout.as_millis()));
    call.maybe_query("timeout", timeout).into_uri()
}

impl CommandInput {
    /// Bytes for standard input. Waits while the guest takes no more.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(Channel::Stdin.byte());
        message.extend_from_slice(bytes);
        self.send(Message::Binary(message.into())).await
    }

    /// Standard input has ended.
    pub async fn end(&mut self) -> Result<(), Error> {
        self.tell(&ClientMessage::StdinEnd).await
    }

    /// The terminal has another size.
    pub async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), Error> {
        self.tell(&ClientMessage::Resize { columns, rows }).await
    }

    async fn tell(&mut self, message: &ClientMessage) -> Result<(), Error> {
        let text = serde_json::to_string(message).expect("always expressible in JSON");
        self.send(Message::Text(text.into())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Error> {
        self.socket
            .send(message)
            .await
            .map_err(|source| broken(&self.what, source))
    }
}

impl CommandOutput {
    /// The next piece. The stream's end without [`Piece::Ended`] is an error.
    pub async fn next(&mut self) -> Result<Piece, Error> {
        loop {
            let message = match self.socket.next().await {
                Some(message) => message.map_err(|source| broken(&self.what, source))?,
                None => return Err(broken(&self.what, SocketError::ConnectionClosed)),
            };
            match message {
                Message::Binary(bytes) => match bytes.first().copied().and_then(Channel::from_byte)
                {
                    Some(Channel::Stdout) => return Ok(Piece::Stdout(bytes.slice(1..))),
                    Some(Channel::Stderr) => return Ok(Piece::Stderr(bytes.slice(1..))),
                    Some(Channel::Stdin) | None => {}
                },
                Message::Text(text) => return self.end(&text),
                Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
            }
        }
    }

    fn end(&self, text: &str) -> Result<Piece, Error> {
        let what = self.what.clone();
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
            Ok(ServerMessage::Error { message }) => Err(Error::BrokenOff { what, message }),
            Err(source) => Err(Error::Answer { what, source }),
        }
    }
}

fn broken(what: &str, source: SocketError) -> Error {
    Error::Stream {
        what: what.to_owned(),
        source: Box::new(source),
    }
}
