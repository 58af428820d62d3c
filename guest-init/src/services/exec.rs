//! Runs a further process for one connection: carries its streams both ways and reports its end.
//!
//! When the connection ends first, the whole process group is killed.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use guest_protocol::{ExecSpec, Exit, Frame, OutputSource, Reply, StreamEnd, TerminalSize};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::connection::{Connection, ConnectionError, Message};
use crate::os::stream::Stream;
use crate::os::sys;
use crate::processes::oom::OomCounter;
use crate::processes::output_streams::OutputStreams;
use crate::processes::reaper::{ExitReceiver, Reaper};
use crate::processes::spawn::{self, Input, Spawned, signal_group};
use crate::services::refusal::{ServiceError, refusal};

/// Most input that waits for the process to read it. Beyond that the connection is not read, so
/// that its credit holds the sender back.
const INPUT_LIMIT_BYTES: usize = 256 * 1024;

/// End of input as typed on a terminal (Ctrl-D).
const END_OF_INPUT: u8 = 4;

/// Runs `spec` until the process or the connection has ended.
pub(crate) async fn serve(
    connection: &Connection,
    reaper: &Reaper,
    spec: &ExecSpec,
    timeout: Option<Duration>,
) -> Result<(), ServiceError> {
    let oom = OomCounter::start(None);
    let spawned = spawn::spawn(spec, Input::Pipe, None, reaper);
    let Spawned { pid, exit, streams } = spawned.map_err(|error| refusal(error.kind(), &error))?;
    let mut group = GroupGuard { leader: Some(pid) };
    connection.send_json(&Reply::Streaming).await?;
    let input = InputPump {
        connection,
        has_terminal: spec.terminal.is_some(),
        stdin: streams.stdin,
        waiting: Vec::new(),
        is_complete: false,
    };
    let mut timed_out = false;
    let exit = tokio::select! {
        exit = carry_output(connection, streams.output, exit) => exit?,
        ended = input.run() => match ended? {},
        () = kill_after(timeout, pid, &mut timed_out) => return Ok(()),
    };
    group.leader = None;
    // Execs have no control group of their own, so the count is that of the whole guest.
    let oom_killed = !timed_out && oom.explains(exit);
    let exit = Exit {
        timed_out,
        oom_killed,
        ..exit
    };
    connection.send_json(&StreamEnd::Exited(exit)).await?;
    Ok(())
}

/// Kills the process group of a process whose connection ended first.
struct GroupGuard {
    leader: Option<Pid>,
}

impl Drop for GroupGuard {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            signal_group(leader, Signal::SIGKILL);
        }
    }
}

/// Kills the process group after `timeout`. Never returns: [`carry_output`] reports the end of the
/// process.
async fn kill_after(timeout: Option<Duration>, pid: Pid, timed_out: &mut bool) {
    if let Some(timeout) = timeout {
        tokio::time::sleep(timeout).await;
        *timed_out = true;
        signal_group(pid, Signal::SIGKILL);
    }
    std::future::pending::<()>().await;
}

/// Carries output until the process has ended and all of its output is sent.
async fn carry_output(
    connection: &Connection,
    mut output: OutputStreams,
    mut exit: ExitReceiver,
) -> Result<Exit, ConnectionError> {
    let exit = loop {
        tokio::select! {
            chunk = output.read(), if output.are_open() => {
                if let Some((source, chunk)) = chunk {
                    send_output(connection, source, &chunk).await?;
                }
            }
            exit = &mut exit => break exit.unwrap_or_default(),
        }
    };
    for (source, chunk) in output.read_rest() {
        send_output(connection, source, &chunk).await?;
    }
    Ok(exit)
}

async fn send_output(
    connection: &Connection,
    source: OutputSource,
    chunk: &[u8],
) -> Result<(), ConnectionError> {
    let frame = match source {
        OutputSource::Stdout => Frame::Stdout(chunk),
        OutputSource::Stderr => Frame::Stderr(chunk),
    };
    connection.send(frame).await
}

/// Carries input and window sizes to the process.
struct InputPump<'a> {
    connection: &'a Connection,
    has_terminal: bool,
    /// None once it is closed.
    stdin: Option<Stream>,
    waiting: Vec<u8>,
    /// The supervisor sends no more input; `waiting` is still to be written.
    is_complete: bool,
}

impl InputPump<'_> {
    /// Runs until the connection ends.
    async fn run(mut self) -> Result<Infallible, ConnectionError> {
        loop {
            let has_room = self.waiting.len() < INPUT_LIMIT_BYTES;
            tokio::select! {
                message = self.connection.receive(), if has_room => self.accept(message?)?,
                ended = self.connection.stream().ended(), if !has_room => {
                    ended?;
                    return Err(ConnectionError::Ended);
                }
                written = write_waiting(self.stdin.as_ref(), &self.waiting) => {
                    self.take_written(written);
                }
            }
            if self.is_complete && self.waiting.is_empty() {
                self.stdin = None;
            }
            if self.stdin.is_none() {
                self.waiting.clear();
            }
        }
    }

    fn accept(&mut self, message: Message) -> Result<(), ConnectionError> {
        match message {
            Message::Stdin(bytes) if bytes.is_empty() => {
                if self.has_terminal {
                    // A terminal stays open for output; Ctrl-D ends the input only.
                    self.waiting.push(END_OF_INPUT);
                } else {
                    self.is_complete = true;
                }
            }
            Message::Stdin(bytes) if !self.is_complete => self.waiting.extend_from_slice(&bytes),
            Message::Json(json) => {
                let size: TerminalSize = serde_json::from_slice(&json)?;
                if let Some(stdin) = self.stdin.as_ref().filter(|_| self.has_terminal) {
                    // Fails only when the process has just ended.
                    let _ended = sys::resize_terminal(stdin.as_fd(), size);
                }
            }
            Message::Stdin(_) | Message::Data(_) | Message::Misplaced => {}
        }
        Ok(())
    }

    fn take_written(&mut self, written: io::Result<usize>) {
        match written {
            Ok(length) => {
                self.waiting.drain(..length.min(self.waiting.len()));
            }
            // The process closed its input, as it may; further input is dropped.
            Err(_) => self.stdin = None,
        }
    }
}

async fn write_waiting(stdin: Option<&Stream>, waiting: &[u8]) -> io::Result<usize> {
    match stdin {
        Some(stdin) if !waiting.is_empty() => stdin.write_some(waiting).await,
        _ => std::future::pending().await,
    }
}
