//! Why a request about a machine was not granted or did not succeed.

use guest_protocol::{OLDEST_VERSION, VERSION};
use machine_api::MachineState;

use crate::guest::GuestError;
use crate::images::ImageError;
use crate::machine::disk_claims::DiskClaimError;
use crate::model::admission::RefusalReason;
use crate::model::config_check::InvalidConfig;
use crate::model::record::LeaseRefusal;
use crate::store::StoreError;

/// What a request can fail with; `api` maps each to a status.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// No machine of that id or name.
    #[error("no machine {0:?}")]
    NotFound(String),
    /// Another machine has that name.
    #[error("a machine named {0:?} exists already")]
    NameTaken(String),
    /// The state does not allow it.
    #[error("machine {id} is {state}: {reason}")]
    Refused {
        /// The machine.
        id: String,
        /// Where it is.
        state: MachineState,
        /// Why not.
        reason: RefusalReason,
    },
    /// Somebody holds the machine's lease.
    #[error("machine {id} is leased (send its nonce, or wait)")]
    LeaseHeld {
        /// The machine.
        id: String,
        /// Seconds since 1970.
        expires_at_s: i64,
    },
    /// The machine has no lease, or another one.
    #[error("machine {0}: lease not found")]
    NoLease(String),
    /// It was admitted and then did not come about.
    #[error("machine {id} is {state} now: {message}")]
    Failed {
        /// The machine.
        id: String,
        /// Where it is.
        state: MachineState,
        /// What went wrong.
        message: String,
    },
    /// The wanted state did not come in time.
    #[error("machine {id} was not {wanted} within {seconds} s, it is {state}")]
    WaitDeadline {
        /// The machine.
        id: String,
        /// What was waited for.
        wanted: String,
        /// Where it is.
        state: MachineState,
        /// How long was waited.
        seconds: u64,
    },
    /// The configuration can't be honoured.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// Its image can't be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It cannot have one of its disks.
    #[error(transparent)]
    Disk(#[from] DiskClaimError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A supervisor of another release suspended the machine, and ours could not use its guest.
    #[error(
        "its guest-init speaks version {theirs} of the protocol, and this supervisor {OLDEST_VERSION} to \
         {VERSION}; it stays suspended (resume it with a supervisor of its release, or boot it without its \
         memory: `mctl start --cold`)"
    )]
    GuestProtocol {
        /// The guest's version.
        theirs: u32,
    },
    /// guest-init failed or refused.
    #[error("the guest of machine {id} did not {what}")]
    Guest {
        /// The machine.
        id: String,
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        source: GuestError,
    },
    /// guest-init did not answer in time.
    #[error("the guest of machine {id} did not {what} within {seconds} s")]
    GuestDeadline {
        /// The machine.
        id: String,
        /// What was asked of it.
        what: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// As many requests as may wait for the same transition do.
    #[error(
        "machine {id}: {most} requests wait for this transition already, the most that there may be"
    )]
    TooManyWait {
        /// The machine.
        id: String,
        /// How many may wait.
        most: usize,
    },
    /// A file of the machine can't be read or written.
    #[error("cannot {what}")]
    Files {
        /// What was attempted.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The request contradicts itself.
    #[error("{0}")]
    Invalid(String),
    /// The version that the request names is not in force.
    #[error("machine {id} has version {found}, not {expected}")]
    OtherVersion {
        /// The machine.
        id: String,
        /// The version in force.
        found: String,
        /// The version that was named.
        expected: String,
    },
    /// There is no folder of that name, or the database knows its machine.
    #[error("no machine in the folder {0:?} that the database does not know")]
    NotUnlisted(String),
    /// What is in the folder does not say enough.
    #[error("the machine in the folder {folder:?} cannot be taken back: {problem}")]
    NotDescribed {
        /// The folder.
        folder: String,
        /// What is missing or wrong.
        problem: String,
    },
    /// A machine is not removed while it runs.
    #[error("the machine in the folder {0:?} runs")]
    UnlistedRuns(String),
    /// The supervisor is shutting down.
    #[error("the supervisor is shutting down")]
    ShuttingDown,
}

impl MachineError {
    /// Why a lease of the machine `id` was not given.
    pub(crate) fn of_lease(id: &str, refusal: LeaseRefusal) -> Self {
        match refusal {
            LeaseRefusal::Held { expires_at_s } => Self::LeaseHeld {
                id: id.to_owned(),
                expires_at_s,
            },
            LeaseRefusal::Unknown => Self::NoLease(id.to_owned()),
        }
    }
}
