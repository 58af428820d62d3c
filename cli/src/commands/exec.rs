//! `mctl exec`: runs a command in a machine. Its input, output and exit code are those of mctl.

use std::io::{self, Read};
use std::time::Duration;

use client::{Command, CommandEnd, CommandInput, Piece};
use machine_api::ExecRequest;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::arguments::MachineArg;
use crate::error::CommandError;
use crate::parse;
use crate::session::Session;
use crate::terminal::{self, RawTerminal};

/// Bytes of standard input that are sent at a time.
const INPUT_BYTES: usize = 32 << 10;

/// Run a command in a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is that of the command, 128 + N if signal N ended it, or 125 if mctl itself failed.
With --json the output is printed when the command ends, and the default of --timeout is 1m.

Example:
  mctl exec -it web -- sh
  mctl exec web 'ls -l /etc'")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArg,
    /// Send standard input to the command
    #[arg(long, short)]
    interactive: bool,
    /// Run the command on a terminal
    #[arg(long, short, conflicts_with = "json")]
    tty: bool,
    /// Environment variable for the command; can be repeated
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse::key_value, conflicts_with = "json")]
    env: Vec<(String, String)>,
    /// Working directory of the command
    #[arg(long, short = 'w', value_name = "PATH", conflicts_with = "json")]
    cwd: Option<String>,
    /// Kill the command after this time
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    timeout: Option<Duration>,
    /// Program and arguments in one string, instead of after --
    #[arg(value_name = "CMD", conflicts_with = "command", requires = "machine")]
    line: Option<String>,
    /// Program and arguments
    #[arg(last = true, required_unless_present = "line", value_name = "ARGS")]
    command: Vec<String>,
}

pub(crate) async fn run(session: &Session, mut args: Args) -> Result<u8, CommandError> {
    if let Some(line) = &args.line {
        args.command = parse::words(line).map_err(CommandError::of_argument("CMD"))?;
    }
    let id = args.machine.find(session).await?.id;
    if session.output.is_json() {
        return run_collected(session, &id, args).await;
    }
    let command = Command {
        argv: args.command,
        env: args.env,
        cwd: args.cwd,
        terminal: args.tty.then(terminal::size),
        timeout: args.timeout,
    };
    let (input, mut output) = session.client.exec_stream(&id, &command).await?;
    let raw = if args.tty && args.interactive {
        RawTerminal::enter()?
    } else {
        None
    };
    let forwarding = tokio::spawn(forward_input(input, args.interactive, args.tty));
    let end = loop {
        match output.next().await? {
            Piece::Stdout(bytes) => session.output.raw(&bytes)?,
            Piece::Stderr(bytes) => session.output.raw_error(&bytes)?,
            Piece::Ended(end) => break end,
        }
    };
    forwarding.abort();
    drop(raw);
    if end.timed_out {
        session
            .output
            .warning("the command was killed at its timeout");
    }
    if end.oom_killed {
        session
            .output
            .warning("the command was killed because the guest ran out of memory");
    }
    Ok(exit_code(end))
}

/// Runs the command with one request, and prints its output at the end, for programs.
async fn run_collected(session: &Session, id: &str, args: Args) -> Result<u8, CommandError> {
    let mut stdin = None;
    if args.interactive {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes)?;
        stdin = Some(String::from_utf8_lossy(&bytes).into_owned());
    }
    let seconds = |timeout: Duration| u32::try_from(timeout.as_secs().max(1)).unwrap_or(u32::MAX);
    let timeout = args.timeout.map(seconds);
    let request = ExecRequest {
        command: args.command,
        cmd: None,
        stdin,
        timeout,
    };
    let answer = session.client.exec(id, &request).await?;
    session.output.json(&answer)?;
    let (exit_code, exit_signal) = (answer.exit_code, answer.exit_signal);
    Ok(self::exit_code(CommandEnd {
        exit_code,
        exit_signal,
        timed_out: false,
        oom_killed: false,
    }))
}

/// The exit code that a shell reports for this end.
fn exit_code(end: CommandEnd) -> u8 {
    let number = match end.exit_signal {
        signal if signal > 0 => signal.saturating_add(128),
        _ => end.exit_code,
    };
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// Sends standard input and window sizes to the command. A failure ends it without an error: the
/// command may have ended, and its output reports that.
async fn forward_input(mut input: CommandInput, interactive: bool, tty: bool) {
    if !interactive {
        if input.close().await.is_ok() {
            // Keeps this half alive until the task is aborted: the command ends when both are dropped.
            std::future::pending::<()>().await;
        }
        return;
    }
    let mut resized = if tty {
        signal(SignalKind::window_change()).ok()
    } else {
        None
    };
    let mut input_bytes = read_stdin();
    loop {
        tokio::select! {
            bytes = input_bytes.recv() => {
                let sent = match bytes {
                    Some(bytes) => input.write(&bytes).await,
                    None => break,
                };
                if sent.is_err() {
                    return;
                }
            }
            () = next_resize(&mut resized) => {
                let (columns, rows) = terminal::size();
                if input.resize(columns, rows).await.is_err() {
                    return;
                }
            }
        }
    }
    if input.close().await.is_ok() {
        std::future::pending::<()>().await;
    }
}

async fn next_resize(resized: &mut Option<Signal>) {
    match resized {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Reads standard input in a thread, which ends with the process: a read of a terminal cannot be
/// cancelled.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; INPUT_BYTES];
        while let Ok(length @ 1..) = stdin.read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
