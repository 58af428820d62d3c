//! *Extension*: the frames of `GET …/machines/{id}/exec/stream`, a WebSocket.
//!
//! Query: `command` once per word, `env=NAME=VALUE` once per variable, `cwd`, `tty=true` with
//! `columns` and `rows`, and `timeout` such as `30s`.
//!
//! The first byte of a binary message names its [`Channel`]; the other bytes are data. Text
//! messages are JSON: the client sends [`ClientMessage`]s; the server sends one [`ServerMessage`],
//! its last message before it closes. If the client closes, the command ends.

use serde::{Deserialize, Serialize};

/// What a binary message carries; its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard input, from the client: 0.
    Stdin,
    /// Standard output, from the server: 1. With a terminal, all output.
    Stdout,
    /// Standard error, from the server: 2.
    Stderr,
}

impl Channel {
    /// The first byte of its messages.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }

    /// The channel whose messages begin with this byte.
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
    /// The size of the terminal changed.
    Resize {
        /// Characters per line.
        columns: u16,
        /// Number of lines.
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
        /// Exit code; -1 if a signal ended the command.
        exit_code: i32,
        /// Number of the signal that ended the command; 0 if none did.
        exit_signal: i32,
        /// Whether the command was killed at its timeout.
        #[serde(default)]
        timed_out: bool,
        /// Whether the guest's out-of-memory killer ended the command.
        #[serde(default)]
        oom_killed: bool,
    },
    /// The stream broke; the command's end is not known.
    Error {
        /// Why, for people.
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
