//! A further process on behalf of one connection: its streams carried both ways, its end told.
//!
//! Nothing outlives the connection: when that ends first, the whole process group is killed.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use guest_protocol::{ExecSpec, Exit, Frame, Reply, StreamEnd, TerminalSize};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::connection::{Connection, ConnectionError, Message};
use crate::oom::OomCounter;
use crate::reaper::{ExitReceiver, Reaper};
use crate::server::refusal;
use crate::spawn::{self, Input, Spawned, Streams, signal_group};
use crate::stream::Stream;
use crate::sys;

/// Input that waits for the process to read it. Beyond it the connection is not read, so that
/// its credit holds the sender back.
const INPUT_LIMIT_BYTES: usize = 256 * 1024;

/// What is still read of a process's output once it has ended. Its own fits into a pipe; more
/// comes from processes that it left behind.
const REST_LIMIT_BYTES: usize = 1 << 20;

/// End of input as typed on a terminal (Ctrl-D).
const END_OF_INPUT: u8 = 4;

/// Runs `spec` and stays until it has ended or the connection has.
pub(crate) async fn serve(
    connection: &Connection,
    reaper: &Reaper,
    spec: &ExecSpec,
    timeout: Option<Duration>,
) -> Result<(), ConnectionError> {
    let oom = OomCounter::start(None);
    let spawned = match spawn::spawn(spec, Input::Ours, None, reaper) {
        Ok(spawned) => spawned,
        Err(error) => {
            let refusal = refusal(error.kind(), &error);
            return connection.send_json(&Reply::Refused(refusal)).await;
        }
    };
    let Spawned { pid, exit, streams } = spawned;
    let mut group = GroupGuard { leader: Some(pid) };
    connection.send_json(&Reply::Streaming).await?;
    let Streams {
        stdin,
        stdout,
        stderr,
    } = streams;
    let input = InputPump {
        connection,
        has_terminal: spec.terminal.is_some(),
        stdin,
        waiting: Vec::new(),
        is_complete: false,
    };
    let mut timed_out = false;
    let exit = tokio::select! {
        exit = carry_output(connection, stdout, stderr, exit) => exit?,
        ended = input.run() => return ended.map(|never| match never {}),
        () = kill_after(timeout, pid, &mut timed_out) => return Ok(()),
    };
    group.leader = None;
    // Execs are in no group of their own: the guest's count is the nearest there is.
    let oom_killed = !timed_out && oom.explains(exit);
    let exit = Exit {
        timed_out,
        oom_killed,
        ..exit
    };
    connection.send_json(&StreamEnd::Exited(exit)).await
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

/// Kills the process group when its time is up. Never returns: the end of the process is seen
/// by whoever carries its output.
async fn kill_after(timeout: Option<Duration>, pid: Pid, timed_out: &mut bool) {
    if let Some(timeout) = timeout {
        tokio::time::sleep(timeout).await;
        *timed_out = true;
        signal_group(pid, Signal::SIGKILL);
    }
    std::future::pending::<()>().await;
}

/// Carries output until the process has ended and all that it wrote is sent.
async fn carry_output(
    connection: &Connection,
    stdout: Stream,
    stderr: Option<Stream>,
    mut exit: ExitReceiver,
) -> Result<Exit, ConnectionError> {
    let mut stdout = Some(stdout);
    let mut stderr = stderr;
    let exit = loop {
        tokio::select! {
            chunk = read_output(stdout.as_ref()) => match chunk {
                Some(chunk) => connection.send(Frame::Stdout(&chunk)).await?,
                None => stdout = None,
            },
            chunk = read_output(stderr.as_ref()) => match chunk {
                Some(chunk) => connection.send(Frame::Stderr(&chunk)).await?,
                None => stderr = None,
            },
            exit = &mut exit => break exit.unwrap_or_default(),
        }
    };
    for chunk in read_rest(stdout.as_ref()) {
        connection.send(Frame::Stdout(&chunk)).await?;
    }
    for chunk in read_rest(stderr.as_ref()) {
        connection.send(Frame::Stderr(&chunk)).await?;
    }
    Ok(exit)
}

/// The next output; none at its end, which for a terminal is an error (EIO). Waits for ever
/// where the stream has ended before.
pub(crate) async fn read_output(stream: Option<&Stream>) -> Option<Vec<u8>> {
    match stream {
        Some(stream) => stream
            .read_chunk()
            .await
            .ok()
            .filter(|chunk| !chunk.is_empty()),
        None => std::future::pending().await,
    }
}

/// What a process that has ended left in its stream, without waiting for more.
pub(crate) fn read_rest(stream: Option<&Stream>) -> Vec<Vec<u8>> {
    let mut rest = Vec::new();
    let mut length = 0;
    while let Some(Ok(chunk)) = stream.map(Stream::try_read)
        && !chunk.is_empty()
        && length < REST_LIMIT_BYTES
    {
        length += chunk.len();
        rest.push(chunk);
    }
    rest
}

/// Carries input and window sizes to the process.
struct InputPump<'a> {
    connection: &'a Connection,
    has_terminal: bool,
    /// None once it has been closed.
    stdin: Option<Stream>,
    waiting: Vec<u8>,
    /// The supervisor sends no more; what waits is still to be written.
    is_complete: bool,
}

enum Never {}

impl InputPump<'_> {
    /// Runs until the connection ends.
    async fn run(mut self) -> Result<Never, ConnectionError> {
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
                    // A terminal stays open for output; its reader sees the end all the same.
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
            // The process closed its input, as it may; further input goes nowhere.
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
