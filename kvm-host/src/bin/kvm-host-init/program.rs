//! Runs the program of the plan, and reaps every process that ends.
//!
//! Only this file waits for processes, except for those that `boot` runs.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use kvm_host::protocol::Frame;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use crate::channel::Channel;
use crate::requests::Requests;
use crate::{console, shutdown};

const READY_POLL: Duration = Duration::from_millis(50);
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// What the kernel's console is.
const TERMINAL: &str = "/dev/ttyS0";
const CHUNK_BYTES: usize = 64 << 10;

/// Keeps a service running until the outside asks for the end of the host.
pub(crate) fn serve(
    channel: &Arc<Channel>,
    argv: &[String],
    port: u16,
    requests: &Requests,
) -> anyhow::Result<()> {
    let mut child = spawn(command(argv)?.process_group(0))?;
    let announcer = announce_when_ready(channel, port)?;
    loop {
        let status = reap_until(Pid::from_child(&child))?;
        if requests.host_is_ending() {
            return reap_all();
        }
        let end = describe(status);
        if !announcer.is_finished() {
            bail!("{} {end} before it accepted a connection", argv[0]);
        }
        console::print(&format!("{} {end}, restarting it", argv[0]));
        std::thread::sleep(RESTART_PAUSE);
        child = spawn(command(argv)?.process_group(0))?;
    }
}

/// Runs a command to its end and returns its exit code. Kills every process that it left behind, so
/// that its output is complete when this returns.
pub(crate) fn run(
    channel: &Arc<Channel>,
    argv: &[String],
    env: &[(String, String)],
    requests: &Requests,
) -> anyhow::Result<i32> {
    let mut command = command(argv)?;
    command
        .envs(env.iter().cloned())
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn(&mut command)?;
    requests.interrupt_from_now_on(Pid::from_child(&child))?;
    let stdout = child
        .stdout
        .take()
        .map(|pipe| forward(channel, pipe, Frame::Stdout));
    let stderr = child
        .stderr
        .take()
        .map(|pipe| forward(channel, pipe, Frame::Stderr));
    let status = reap_until(Pid::from_child(&child))?;
    shutdown::signal_all(Signal::KILL);
    reap_all()?;
    for forwarder in [stdout, stderr].into_iter().flatten() {
        // The console has the panic of a forwarder.
        let _ = forwarder?.join();
    }
    Ok(exit_code(status))
}

/// Runs a shell on the console until it ends.
pub(crate) fn shell(in_debian: bool) -> anyhow::Result<()> {
    // Job control needs a session and a controlling terminal, which /dev/console cannot be. `setsid`
    // becomes the shell only if it is no leader of a process group; else it would end at once.
    let argv: &[&str] = if in_debian {
        &["/usr/bin/setsid", "--ctty", "/bin/bash", "-l"]
    } else {
        &["/bin/busybox", "setsid", "-c", "/bin/sh", "-l"]
    };
    let mut command = command(&Vec::from_iter(argv.iter().map(|&word| word.to_owned())))?;
    let terminal = File::options()
        .read(true)
        .write(true)
        .open(TERMINAL)
        .with_context(|| format!("cannot open {TERMINAL}"))?;
    let copy = || terminal.try_clone().context("cannot share the terminal");
    command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
    let child = spawn(&mut command)?;
    reap_until(Pid::from_child(&child)).map(drop)
}

fn command(argv: &[String]) -> anyhow::Result<Command> {
    let Some((program, arguments)) = argv.split_first() else {
        bail!("the plan names no program");
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        // Programs take the console for a terminal, but it goes to a log file.
        .env("NO_COLOR", "1")
        .current_dir("/root");
    Ok(command)
}

fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .spawn()
        .with_context(|| format!("cannot run {program}"))
}

fn announce_when_ready(channel: &Arc<Channel>, port: u16) -> anyhow::Result<JoinHandle<()>> {
    let channel = Arc::clone(channel);
    std::thread::Builder::new()
        .name("ready".to_owned())
        .spawn(move || {
            // The outside has a deadline for this.
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
                std::thread::sleep(READY_POLL);
            }
            channel.send(&Frame::Ready);
        })
        .context("cannot start a thread")
}

fn forward(
    channel: &Arc<Channel>,
    mut pipe: impl Read + Send + 'static,
    frame: fn(Vec<u8>) -> Frame,
) -> anyhow::Result<JoinHandle<()>> {
    let channel = Arc::clone(channel);
    std::thread::Builder::new()
        .name("forward".to_owned())
        .spawn(move || {
            let mut chunk = vec![0; CHUNK_BYTES];
            while let Ok(bytes @ 1..) = pipe.read(&mut chunk) {
                channel.send(&frame(chunk[..bytes].to_vec()));
            }
        })
        .context("cannot start a thread")
}

/// Reaps processes until `wanted` has ended.
fn reap_until(wanted: Pid) -> anyhow::Result<WaitStatus> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == wanted => return Ok(status),
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(errno) => return Err(errno).context("cannot wait for the program"),
        }
    }
}

/// Reaps processes until there is no other.
fn reap_all() -> anyhow::Result<()> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(rustix::io::Errno::CHILD) => return Ok(()),
            Err(errno) => return Err(errno).context("cannot wait for programs to end"),
        }
    }
}

/// As a shell reports it: 128 plus the number of the signal for a killed program.
fn exit_code(status: WaitStatus) -> i32 {
    status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

fn describe(status: WaitStatus) -> String {
    match status.terminating_signal() {
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("ended with code {}", exit_code(status)),
    }
}
