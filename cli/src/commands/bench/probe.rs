//! What tells that a machine is useful again: `tcp=HOST:PORT`, `http=URL` or `exec=COMMAND`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use client::{Client, Page, PageError, Trust};
use machine_api::ExecRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The lowest HTTP status that is no answer: a proxy in front of the machine has its own errors.
const FIRST_ERROR_STATUS: u16 = 400;

/// Something that answers if the machine does its work.
#[derive(Debug, Clone)]
pub(super) enum Probe {
    /// A connection on which the other side sends something.
    Tcp(String),
    /// A page whose status is below 400.
    Http(Page),
    /// A command in the machine that exits with 0.
    Exec(String),
}

/// Why a text is not a [`Probe`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("write it as tcp=HOST:PORT, http=URL or exec=COMMAND")]
    Form,
    #[error("{0:?} is not an address: write it as tcp=HOST:PORT")]
    Address(String),
    #[error("it names no page: {0}")]
    Page(#[from] PageError),
}

/// Why a probe had no answer this time.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error("the connection broke")]
    Broken(#[source] std::io::Error),
    #[error("the connection was closed without a byte")]
    Closed,
    #[error("no answer")]
    Api(#[source] Box<client::Error>),
    #[error("the answer's status is {0}")]
    Status(u16),
    #[error("the command's exit code is {0}")]
    Exit(i32),
    #[error("no answer within {} ms", .0.as_millis())]
    Deadline(Duration),
}

impl FromStr for Probe {
    type Err = ProbeError;

    fn from_str(text: &str) -> Result<Self, ProbeError> {
        match text.split_once('=') {
            Some(("tcp", address)) => {
                let is_address = address.rsplit_once(':').is_some_and(|(host, port)| {
                    !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
                });
                if is_address {
                    Ok(Self::Tcp(address.to_owned()))
                } else {
                    Err(ProbeError::Address(address.to_owned()))
                }
            }
            Some(("http", url)) => Ok(Self::Http(url.parse()?)),
            Some(("exec", command)) if !command.trim().is_empty() => {
                Ok(Self::Exec(command.to_owned()))
            }
            _ => Err(ProbeError::Form),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp={address}"),
            Self::Http(page) => write!(f, "http={page}"),
            Self::Exec(command) => write!(f, "exec={command}"),
        }
    }
}

impl Probe {
    /// Sets which certificates are trusted over https.
    pub(super) fn with_trust(self, trust: Trust) -> Self {
        match self {
            Self::Http(page) => Self::Http(page.with_trust(trust)),
            other => other,
        }
    }

    /// Asks once, for no longer than `deadline`. `send` is what a TCP probe says first.
    pub(super) async fn ask(
        &self,
        client: &Client,
        machine: &str,
        send: &[u8],
        deadline: Duration,
    ) -> Result<(), NoAnswer> {
        let asked = async {
            match self {
                Self::Tcp(address) => ask_tcp(address, send).await,
                Self::Http(page) => match page.status(deadline).await {
                    Ok(status) if status < FIRST_ERROR_STATUS => Ok(()),
                    Ok(status) => Err(NoAnswer::Status(status)),
                    Err(error) => Err(NoAnswer::Api(Box::new(error))),
                },
                Self::Exec(command) => ask_exec(client, machine, command, deadline).await,
            }
        };
        timeout(deadline, asked)
            .await
            .unwrap_or(Err(NoAnswer::Deadline(deadline)))
    }
}

/// That a connection is accepted tells nothing: a proxy in front of the machine accepts it, too.
async fn ask_tcp(address: &str, send: &[u8]) -> Result<(), NoAnswer> {
    let mut stream = TcpStream::connect(address)
        .await
        .map_err(NoAnswer::Connect)?;
    stream.write_all(send).await.map_err(NoAnswer::Broken)?;
    match stream.read(&mut [0]).await {
        Ok(0) => Err(NoAnswer::Closed),
        Ok(_) => Ok(()),
        Err(error) => Err(NoAnswer::Broken(error)),
    }
}

async fn ask_exec(
    client: &Client,
    machine: &str,
    command: &str,
    deadline: Duration,
) -> Result<(), NoAnswer> {
    let request = ExecRequest {
        command: ["/bin/sh", "-c", command].map(str::to_owned).to_vec(),
        timeout: Some(u32::try_from(deadline.as_secs()).unwrap_or(u32::MAX).max(1)),
        ..ExecRequest::default()
    };
    match client.exec(machine, &request).await {
        Ok(answer) if answer.exit_code == 0 => Ok(()),
        Ok(answer) => Err(NoAnswer::Exit(answer.exit_code)),
        Err(error) => Err(NoAnswer::Api(Box::new(error))),
    }
}

/// What a TCP probe says first. `\r`, `\n`, `\t`, `\0` and `\\` stand for one byte each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Greeting(pub(super) Vec<u8>);

impl FromStr for Greeting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            if character != '\\' {
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            bytes.push(match characters.next() {
                Some('r') => b'\r',
                Some('n') => b'\n',
                Some('t') => b'\t',
                Some('0') => 0,
                Some('\\') => b'\\',
                _ => return Err(r"after \ comes one of r, n, t, 0 and \".to_owned()),
            });
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_prints_as_it_is_written() {
        for text in [
            "tcp=web.example:5432",
            "tcp=[::1]:22",
            "http=https://web.example:443/health",
            "exec=pg_isready --quiet",
        ] {
            assert_eq!(text.parse::<Probe>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn each_wrong_probe_is_refused_with_the_way_to_write_it() {
        let error = |text: &str| text.parse::<Probe>().unwrap_err();
        for text in ["", "tcp", "udp=a:1", "exec=", "exec= "] {
            assert_eq!(error(text), ProbeError::Form, "{text:?}");
        }
        for address in ["", "web", "web:", "web:0", ":80", "web:99999"] {
            let expected = ProbeError::Address(address.to_owned());
            assert_eq!(error(&format!("tcp={address}")), expected);
        }
        assert!(matches!(error("http=web"), ProbeError::Page(_)));
    }

    #[test]
    fn escapes_stand_for_single_bytes() {
        let Greeting(bytes) = r"PING\r\n\0\\é".parse().unwrap();
        assert_eq!(bytes, b"PING\r\n\0\\\xc3\xa9");
        assert!(r"\x41".parse::<Greeting>().is_err());
        assert!("\\".parse::<Greeting>().is_err());
    }
}
