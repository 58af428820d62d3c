//! *Extension*: the frames of `GET …/machines/{id}/exec/stream`, a WebSocket.
//!
//! Query: `command` once per word, `env=K=V` once per variable, `cwd`, `tty=true` with `columns`
//! and `rows`, `timeout` such as `30s`.
//!
//! Binary messages carry bytes behind one byte that names the [`Channel`]. Text messages are
//! JSON: [`ClientMessage`] from the client, one [`ServerMessage`] from the server, its last before
//! it closes. A client that closes ends the command.

use serde::{Deserialize, Serialize};

/// First byte of a binary message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// From the client: 0.
    Stdin,
    /// From the server: 1. With a terminal all output.
    Stdout,
    /// From the server: 2.
    Stderr,
}

impl Channel {
    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }

    /// The channel of that byte.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Stdin),
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// A text message of the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// The terminal has another size.
    Resize {
        /// Characters per line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
    /// Standard input has ended.
    StdinEnd,
}

/// The last text message of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// The command ended.
    Exit {
        /// -1 if a signal ended it.
        exit_code: i32,
        /// 0 if none.
        exit_signal: i32,
        /// It was killed at its timeout.
        #[serde(default)]
        timed_out: bool,
        /// The guest's out-of-memory killer did it.
        #[serde(default)]
        oom_killed: bool,
    },
    /// The stream broke off.
    Error {
        /// For people.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_this_exact_json() {
        let text = |message: &ServerMessage| serde_json::to_string(message).unwrap();
        let exit = ServerMessage::Exit {
            exit_code: 3,
            exit_signal: 0,
            timed_out: false,
            oom_killed: false,
        };
        assert_eq!(
            text(&exit),
            r#"{"type":"exit","exit_code":3,"exit_signal":0,"timed_out":false,"oom_killed":false}"#
        );
        let end: ClientMessage = serde_json::from_str(r#"{"type":"stdin_end"}"#).unwrap();
        assert_eq!(end, ClientMessage::StdinEnd);
        let size: ClientMessage =
            serde_json::from_str(r#"{"type":"resize","columns":80,"rows":24}"#).unwrap();
        assert_eq!(
            size,
            ClientMessage::Resize {
                columns: 80,
                rows: 24
            }
        );
    }

    #[test]
    fn channels_are_known_by_their_byte() {
        for byte in 0..3 {
            assert_eq!(Channel::from_byte(byte).map(Channel::byte), Some(byte));
        }
        assert_eq!(Channel::from_byte(3), None);
    }
}
