//! Why a command fails: the errors that mctl itself finds, and the exit code and the hint of every
//! error. The texts of other errors are those of the crates that report them.

use std::io;
use std::path::PathBuf;

use client::ErrorKind;
use machine_api::MachineState;
use thiserror::Error;

use crate::settings::SettingsError;

/// The exit codes, as `mctl help` explains them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    success
  1    the machine, the supervisor or this host failed to do it
  2    the command line or the configuration is not valid
  3    there is no such machine, key or file
  4    not possible in this state, or somebody else holds the lease
  5    the supervisor cannot be reached
  6    not finished within the time limit
  7    the token is missing, wrong, or does not allow this
  8    a check or an assertion failed (doctor, bench, --assert-flat)
  9    an assertion is undecided: more measurements may decide (--assert-flat)
  125  `mctl exec` itself failed; its other codes are those of the command (128 + signal)
  141  the reader of the output closed it";

/// The kind of a failure, which decides the exit code.
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
    Undecided,
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
            Self::Undecided => 9,
            Self::BrokenPipe => 141,
        }
    }
}

/// Why a command failed.
#[derive(Debug, Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Api(#[from] client::Error),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("there is no machine {given:?}")]
    NoSuchMachine { given: String },
    #[error("{} machine ids start with {given:?}: {}", .ids.len(), .ids.join(", "))]
    Ambiguous { given: String, ids: Vec<String> },
    #[error("there are no machines")]
    NoMachines,
    #[error("no machine given, and there are {count}")]
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
    #[error("cycle {cycle} failed a check: {message}")]
    CycleFailed { cycle: u32, message: String },
    #[error("something grows from cycle to cycle: the verdict is rising")]
    NotFlat,
    #[error("these cycles do not show whether anything grows: the verdict is undecided")]
    FlatnessUndecided,
    #[error("the guest keeps {sockets} vsock sockets open whose other end is gone")]
    Leaks { sockets: u32 },
    #[error("resumes collide with vsock pairs that are still open in the guest")]
    Collides,
    #[error("guest-init did not answer")]
    InitSilent,
    #[error("the live view needs a terminal")]
    NoTerminal,
    #[error("{argument}: {reason}")]
    Argument {
        argument: &'static str,
        reason: String,
    },
    #[error("could not ask for confirmation: standard input is not a terminal")]
    CannotConfirm,
    #[error("not confirmed")]
    NotConfirmed,
    #[error("{failed} of {total} machines failed")]
    Several {
        failed: usize,
        total: usize,
        kind: Kind,
    },
    #[error("{problems} of {checks} checks found a problem")]
    Unhealthy { problems: usize, checks: usize },
    #[error("could not {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("could not write the output")]
    Output(#[from] io::Error),
}

impl CommandError {
    /// Makes the error of a wrong `argument` from its reason.
    pub(crate) fn of_argument(argument: &'static str) -> impl FnOnce(String) -> Self {
        move |reason| Self::Argument { argument, reason }
    }

    /// The kind of the failure.
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
            | Self::CannotConfirm => Kind::Usage,
            Self::NoSuchMachine { .. } | Self::NoMachines => Kind::NotFound,
            Self::NotSuspended { .. } | Self::NotStarted { .. } => Kind::Conflict,
            Self::NoMetadata { .. } => Kind::NotFound,
            Self::NoNonce => Kind::Usage,
            Self::Report(_) | Self::InitSilent => Kind::Failed,
            Self::CycleFailed { .. } | Self::NotFlat | Self::Collides | Self::Leaks { .. } => {
                Kind::Finding
            }
            Self::FlatnessUndecided => Kind::Undecided,
            Self::NotConfirmed => Kind::Failed,
            Self::Several { kind, .. } => *kind,
            Self::Unhealthy { .. } => Kind::Finding,
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Self::File { .. } => Kind::Failed,
            Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe => Kind::BrokenPipe,
            Self::Output(_) => Kind::Failed,
        }
    }

    /// What to do about the failure, if that is known.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Api(error) => return error.hint(),
            Self::Settings(error) => return error.hint(),
            Self::NoSuchMachine { .. } => "`mctl list` shows all machines",
            Self::Ambiguous { .. } => "give more of the id, or the name",
            Self::NoMachines => "`mctl run` creates one",
            Self::SeveralMachines { .. } => {
                "give a name, an id or the start of one: `mctl list` shows them"
            }
            Self::NotStarted { .. } => "`mctl start` starts it",
            Self::NoTerminal => "`mctl list --watch` works without a terminal",
            Self::NoNonce => {
                "give the nonce that `mctl lease acquire` printed as --lease or MCTL_LEASE"
            }
            Self::Report(error) => error.hint(),
            Self::InitSilent => "`mctl logs` shows the last output of the guest",
            Self::NotSuspended { .. } => "`mctl start` starts it from its current state",
            Self::CannotConfirm => "--yes skips the question",
            Self::FlatnessUndecided => {
                "give more --cycles or --most-cycles; a quieter host needs fewer"
            }
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
