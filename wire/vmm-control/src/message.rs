//! Requests, replies and events. `tests/golden.rs` holds their exact JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ExitReport, SuspendFigures, VsockCounters};

/// One line from the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the sender, returned in the reply.
    pub id: u64,
    /// What is asked.
    #[serde(flatten)]
    pub body: RequestBody,
}

/// What the supervisor asks of a VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum RequestBody {
    /// Halt the vCPUs; success if they are halted. Answered by [`Reply::Done`].
    Pause,
    /// Let halted vCPUs go on; success if they run. Answered by [`Reply::Done`].
    Unpause,
    /// Pause, save into this directory, answer [`Reply::Suspended`], exit. On an error the machine runs on
    /// as if nothing had been asked.
    Suspend {
        /// The image directory.
        image: PathBuf,
    },
    /// Break off a suspend that has not yet committed its image; the machine runs on. Its request is answered by
    /// [`Reply::Failed`] with kind `cancelled`. Answered by [`Reply::Done`], also where no suspend was under way.
    CancelSuspend,
    /// Answered by [`Reply::Counters`].
    Counters,
    /// End the process now; the guest loses power. Answered by [`Reply::Done`].
    Quit,
}

/// One line from the VMM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum Message {
    /// First line of each connection.
    Hello(Hello),
    /// Answers the request of that id.
    Reply {
        /// The request's id.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// Something happened.
    Event {
        /// When, on CLOCK_MONOTONIC.
        at_ns: u64,
        /// What.
        event: Event,
    },
}

/// Who answers, and what has happened so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::VERSION`].
    pub version: u32,
    /// As given on the command line.
    pub machine_id: String,
    /// As given on the command line.
    pub generation: u64,
    /// Process id.
    pub pid: u32,
    /// What the vCPUs do.
    pub state: RunState,
    /// Phases of the start or restore, up to now, in order; adjacent phases meet without a gap.
    pub phases: Vec<Phase>,
    /// When the guest acknowledged the transport reset, if it has (never after a boot).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_acknowledged_ns: Option<u64>,
}

/// What the vCPUs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Not entered yet.
    Building,
    /// They run.
    Running,
    /// Halted by request.
    Paused,
    /// Halted, and being saved.
    Suspending,
}

/// A span of time with a name.
///
/// Names: a restore has `vmm_start` (from the first line of main), `image_open`, `memory_map`,
/// `kvm_restore`, `first_entry`; boot has `vmm_start`, `memory_map`, `kernel_load`, `kvm_setup`, `first_entry`;
/// suspend has `pause`, `quiesce`, `collect`, `scan`, `retire`, `memory_write`, `checksum`, `sync`, `commit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Lower case, one word or joined by underscores.
    pub name: String,
    /// Begin on CLOCK_MONOTONIC.
    pub start_ns: u64,
    /// End on CLOCK_MONOTONIC.
    pub end_ns: u64,
}

/// Answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// As asked.
    Done,
    /// The image is whole and durable; the process exits next.
    Suspended(SuspendFigures),
    /// Counters of the vsock device.
    Counters(VsockCounters),
    /// Not done. The machine is as it was before.
    Failed {
        /// For programs: `cancelled`, `no_space`, `invalid`, `io`, `busy`.
        kind: String,
        /// For people, with the whole chain of causes.
        message: String,
    },
}

/// Something that happened in the VMM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// All vCPUs have been entered; the start's or restore's phases are complete.
    Running {
        /// All of them, as in [`Hello`].
        phases: Vec<Phase>,
    },
    /// The guest has acknowledged the transport reset; host connections flow.
    ResetAcknowledged,
    /// The background check of the memory file is through, and nothing was wrong.
    Verified {
        /// Bytes read.
        bytes: u64,
        /// Time it took, in milliseconds.
        ms: u64,
    },
    /// The process ends; also written to `--exit-file`.
    Exiting(ExitReport),
}
