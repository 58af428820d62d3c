//! Kinds of failures, the exit code of each, and hints. The text of a cause is its owner's; here
//! is only what the command line itself finds wrong.

use std::io;
use std::path::PathBuf;

use client::ErrorKind;
use machine_api::MachineState;
use thiserror::Error;

use crate::settings::SettingsError;

/// For `mctl help`: the exit codes, in one place.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the machine, the supervisor or this host failed to do it
  2    the command line or the configuration makes no sense
  3    there is no such machine, key or file
  4    not possible in this state, or somebody else holds the lease
  5    the supervisor can't be reached
  6    not done within the time given
  7    token missing, wrong, or of too small a scope
  8    a check or an assertion found something wrong (doctor, --assert-flat)
  125  `mctl exec` itself failed; any other code of it is the command's own (128 + signal)
  141  the reader of the output went away";

/// What kind of failure it is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Failed,
    Usage,
    NotFound,
    Conflict,
    Unreachable,
    Deadline,
    Denied,
    Finding,
    BrokenPipe,
}

impl Kind {
    /// The exit code, as [`EXIT_CODES`] lists them.
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unreachable => 5,
            Self::Deadline => 6,
            Self::Denied => 7,
            Self::Finding => 8,
            Self::BrokenPipe => 141,
        }
    }
}

/// Why a command did not succeed.
#[derive(Debug, Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Api(#[from] client::Error),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("there is no machine {given:?}")]
    NoSuchMachine { given: String },
    #[error("{given:?} is the beginning of {} machine ids: {}", .ids.len(), .ids.join(", "))]
    Ambiguous { given: String, ids: Vec<String> },
    #[error("which machine? there is none yet")]
    NoMachines,
    #[error("which machine? there are {count}")]
    SeveralMachines { count: usize },
    #[error("machine {machine} is {state}, not suspended")]
    NotSuspended {
        machine: String,
        state: MachineState,
    },
    #[error("machine {machine} is {state}, not started")]
    NotStarted {
        machine: String,
        state: MachineState,
    },
    #[error("there is no metadata {key:?}")]
    NoMetadata { key: String },
    #[error("no lease nonce given")]
    NoNonce,
    #[error(transparent)]
    Report(#[from] cycles::LoadError),
    #[error("cycle {cycle} failed a check: {what}")]
    CycleFailed { cycle: u32, what: String },
    #[error("resume latency did not stay flat")]
    NotFlat,
    #[error("the guest keeps {sockets} vsock sockets open without a living other end")]
    Leaks { sockets: u32 },
    #[error("resumes run into vsock pairs that are still open in the guest")]
    Collides,
    #[error("the guest's init did not answer")]
    InitSilent,
    #[error("a live view needs a terminal")]
    NoTerminal,
    #[error("{argument}: {reason}")]
    Argument {
        argument: &'static str,
        reason: String,
    },
    #[error("nobody to ask for confirmation: standard input is no terminal")]
    NobodyToAsk,
    #[error("not confirmed")]
    NotConfirmed,
    #[error("{failed} of {of} machines: not done")]
    Several {
        failed: usize,
        of: usize,
        kind: Kind,
    },
    #[error("{problems} of {checks} checks found a problem")]
    Unhealthy { problems: usize, checks: usize },
    #[error("could not {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("could not write the output")]
    Output(#[from] io::Error),
}

impl CommandError {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Api(error) => match error.kind() {
                ErrorKind::Unreachable | ErrorKind::Protocol => Kind::Unreachable,
                ErrorKind::Deadline => Kind::Deadline,
                ErrorKind::NotFound => Kind::NotFound,
                ErrorKind::Conflict => Kind::Conflict,
                ErrorKind::Denied => Kind::Denied,
                ErrorKind::Invalid => Kind::Usage,
                ErrorKind::Failed => Kind::Failed,
            },
            Self::Settings(_)
            | Self::Ambiguous { .. }
            | Self::SeveralMachines { .. }
            | Self::Argument { .. }
            | Self::NoTerminal
            | Self::NobodyToAsk => Kind::Usage,
            Self::NoSuchMachine { .. } | Self::NoMachines => Kind::NotFound,
            Self::NotSuspended { .. } => Kind::Conflict,
            Self::NotStarted { .. } => Kind::Conflict,
            Self::NoMetadata { .. } => Kind::NotFound,
            Self::NoNonce => Kind::Usage,
            Self::Report(_) | Self::InitSilent => Kind::Failed,
            Self::CycleFailed { .. } | Self::NotFlat | Self::Collides | Self::Leaks { .. } => {
                Kind::Finding
            }
            Self::NotConfirmed => Kind::Failed,
            Self::Several { kind, .. } => *kind,
            Self::Unhealthy { .. } => Kind::Finding,
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Self::File { .. } => Kind::Failed,
            Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe => Kind::BrokenPipe,
            Self::Output(_) => Kind::Failed,
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Api(error) => return error.hint(),
            Self::Settings(error) => return error.hint(),
            Self::NoSuchMachine { .. } => "`mctl list` shows all of them",
            Self::Ambiguous { .. } => "write more of the id, or the name",
            Self::NoMachines => "`mctl run` makes one",
            Self::SeveralMachines { .. } => {
                "give a name, an id or the beginning of one: `mctl list` shows them"
            }
            Self::NotStarted { .. } => "`mctl start` starts it",
            Self::NoTerminal => "`mctl list --watch` works without",
            Self::NoNonce => "--lease or MCTL_LEASE takes what `mctl lease acquire` printed",
            Self::Report(error) => error.hint(),
            Self::InitSilent => "`mctl logs` shows what the guest last said",
            Self::NotSuspended { .. } => "`mctl start` starts it from where it is",
            Self::NobodyToAsk => "--yes confirms beforehand",
            Self::Argument { .. }
            | Self::NoMetadata { .. }
            | Self::CycleFailed { .. }
            | Self::NotFlat
            | Self::Collides
            | Self::Leaks { .. }
            | Self::NotConfirmed
            | Self::Several { .. }
            | Self::Unhealthy { .. }
            | Self::File { .. }
            | Self::Output(_) => return None,
        };
        Some(hint.to_owned())
    }
}
