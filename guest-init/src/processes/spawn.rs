//! Starts a process: its environment, its streams, its session. How it ends is reported by
//! `reaper.rs`; its streams are the caller's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guest_protocol::{ExecSpec, RefusalKind, TerminalSize};
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::os::stream::Stream;
use crate::os::sys;
use crate::processes::output_streams::OutputStreams;
use crate::processes::reaper::{ExitReceiver, Reaper};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("no program is given")]
    NoProgram,
    #[error("name, argument or variable {0:?} cannot be passed to a process")]
    Unusable(String),
    #[error("working directory {0:?} is not a directory")]
    Directory(PathBuf),
    #[error("cannot start program {program:?}")]
    Program {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot open a terminal for it")]
    Terminal(#[source] io::Error),
    #[error("cannot set up its standard streams")]
    Streams(#[source] io::Error),
    #[error("cannot open its control group {group:?}")]
    ControlGroup {
        group: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl SpawnError {
    /// The kind of the refusal.
    pub(crate) fn kind(&self) -> RefusalKind {
        match self {
            Self::NoProgram | Self::Unusable(_) => RefusalKind::Invalid,
            Self::Directory(_) => RefusalKind::NotFound,
            Self::Program { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                RefusalKind::NotFound
            }
            Self::Program { .. }
            | Self::Terminal(_)
            | Self::Streams(_)
            | Self::ControlGroup { .. } => RefusalKind::Failed,
        }
    }
}

/// Standard input of a process without a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// None: `/dev/null`.
    Null,
    /// A pipe; the caller writes.
    Pipe,
}

/// Our ends of a process's streams. A terminal is all of them.
#[derive(Debug)]
pub(crate) struct Streams {
    /// What the process reads; with a terminal, its keyboard.
    pub(crate) stdin: Option<Stream>,
    pub(crate) output: OutputStreams,
}

/// A process that runs, in a session and process group of its own.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) exit: ExitReceiver,
    pub(crate) streams: Streams,
}

/// The child's ends.
struct ChildStreams {
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
}

/// Starts the process that `spec` describes, in the control group at `cgroup` if given.
pub(crate) fn spawn(
    spec: &ExecSpec,
    input: Input,
    cgroup: Option<&Path>,
    reaper: &Reaper,
) -> Result<Spawned, SpawnError> {
    let program = check(spec)?;
    let (ours, theirs) = match spec.terminal {
        Some(size) => open_terminal(size).map_err(SpawnError::Terminal)?,
        None => open_pipes(input).map_err(SpawnError::Streams)?,
    };
    let mut command = Command::new(program);
    command
        .args(spec.argv.iter().skip(1))
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .current_dir(spec.cwd.as_deref().unwrap_or("/"))
        .stdin(theirs.stdin)
        .stdout(theirs.stdout)
        .stderr(theirs.stderr);
    if spec.terminal.is_some() {
        command.env("TERM", "xterm-256color");
    }
    command.envs(&spec.env);
    let cgroup_procs = cgroup.map(open_cgroup).transpose()?;
    sys::isolate(&mut command, spec.terminal.is_some(), cgroup_procs);
    let child = command.spawn().map_err(|source| SpawnError::Program {
        program: program.to_owned(),
        source,
    })?;
    let pid = Pid::from_raw(child.id().cast_signed());
    Ok(Spawned {
        pid,
        exit: reaper.register(pid),
        streams: ours,
    })
}

/// Sends `signal` to every process of the group that `leader` leads, if that still exists.
pub(crate) fn signal_group(leader: Pid, signal: Signal) {
    let _gone = killpg(leader, signal);
}

fn check(spec: &ExecSpec) -> Result<&str, SpawnError> {
    let program = spec.argv.first().ok_or(SpawnError::NoProgram)?;
    let names = spec.env.keys();
    if let Some(name) = names
        .clone()
        .find(|name| name.is_empty() || name.contains('='))
    {
        return Err(SpawnError::Unusable(name.clone()));
    }
    let mut texts = spec.argv.iter().chain(names).chain(spec.env.values());
    if let Some(text) = texts.find(|text| text.contains('\0')) {
        return Err(SpawnError::Unusable(text.clone()));
    }
    if program.is_empty() {
        return Err(SpawnError::NoProgram);
    }
    if let Some(directory) = &spec.cwd
        && !Path::new(directory).is_dir()
    {
        return Err(SpawnError::Directory(directory.into()));
    }
    Ok(program)
}

fn open_cgroup(group: &Path) -> Result<OwnedFd, SpawnError> {
    let file = File::options()
        .write(true)
        .open(group.join("cgroup.procs"))
        .map_err(|source| SpawnError::ControlGroup {
            group: group.to_owned(),
            source,
        })?;
    Ok(file.into())
}

fn open_pipes(input: Input) -> io::Result<(Streams, ChildStreams)> {
    let (stdout, their_stdout) = io::pipe()?;
    let (stderr, their_stderr) = io::pipe()?;
    let (stdin, their_stdin) = match input {
        Input::Null => (None, Stdio::null()),
        Input::Pipe => {
            let (theirs, ours) = io::pipe()?;
            (Some(Stream::new(ours.into())?), theirs.into())
        }
    };
    let ours = Streams {
        stdin,
        output: OutputStreams::new(
            Stream::new(stdout.into())?,
            Some(Stream::new(stderr.into())?),
        ),
    };
    let theirs = ChildStreams {
        stdin: their_stdin,
        stdout: their_stdout.into(),
        stderr: their_stderr.into(),
    };
    Ok((ours, theirs))
}

fn open_terminal(size: TerminalSize) -> io::Result<(Streams, ChildStreams)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    sys::resize_terminal(master.as_fd(), size)?;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(ptsname_r(&master)?)?;
    let master = OwnedFd::from(master);
    let ours = Streams {
        stdin: Some(Stream::new(master.try_clone()?)?),
        output: OutputStreams::new(Stream::new(master)?, None),
    };
    let theirs = ChildStreams {
        stdin: device.try_clone()?.into(),
        stdout: device.try_clone()?.into(),
        stderr: device.into(),
    };
    Ok((ours, theirs))
}
