//! Requests, replies and events. `tests/golden.rs` holds their exact JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::report::{ExitReport, Phase, SuspendFigures, VsockCounters};

/// One line from the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the sender, returned in the reply.
    pub id: u64,
    /// The request.
    #[serde(flatten)]
    pub body: RequestBody,
}

/// The requests of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum RequestBody {
    /// Halt the vCPUs; success if they are halted already. Answered by [`Reply::Done`].
    Pause,
    /// Let halted vCPUs continue; success if they run already. Answered by [`Reply::Done`].
    Unpause,
    /// Pause, save into this directory, answer [`Reply::Suspended`], exit. After an error the machine
    /// continues as if there had been no request.
    Suspend {
        /// The image directory.
        image: PathBuf,
    },
    /// Cancel a suspend that has not yet committed its image; the machine continues. The suspend's request is
    /// answered by [`Reply::Failed`] with kind `cancelled`. Answered by [`Reply::Done`], also if there is no
    /// suspend.
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
    /// An event.
    Event {
        /// When, on CLOCK_MONOTONIC.
        at_ns: u64,
        /// What.
        event: Event,
    },
    /// One that this version does not know; to be skipped.
    #[serde(other)]
    Unknown,
}

/// What a VMM program answers to `mctl-vmm protocols`, before anything is entrusted to it. A program that
/// does not know the question speaks version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocols {
    /// Its [`crate::VERSION`].
    pub control: u32,
    /// The format of images that it writes.
    pub image: u32,
    /// What can follow its `--announce`: events that supervisors of version 1 may not know. The first release
    /// closes a connection on which it reads one.
    #[serde(default)]
    pub announces: Vec<String>,
}

/// Follows `--announce` for [`Event::ConsumptionDurable`].
pub const ANNOUNCE_CONSUMPTION: &str = "consumption";

/// The identity of a VMM, and the state of its machine.
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
    /// The state of the vCPUs.
    pub state: RunState,
    /// Phases of the start or restore so far, in order, without a gap between them.
    pub phases: Vec<Phase>,
    /// When the guest acknowledged the transport reset; none if it has not, and after a boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_acknowledged_ns: Option<u64>,
    /// See [`Event::ConsumptionDurable`]; true after a boot. A VMM that does not say, or was not asked to, makes
    /// no such promise, and nothing waits for it.
    #[serde(default = "yes")]
    pub consumption_durable: bool,
}

fn yes() -> bool {
    true
}

/// The state of the vCPUs.
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

/// Answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// Done as requested.
    Done,
    /// The image is whole and durable; the process exits next.
    Suspended(SuspendFigures),
    /// Counters of the vsock device.
    Counters(VsockCounters),
    /// Not done. The machine is as it was before.
    Failed {
        /// For programs: `cancelled`, `no_space`, `invalid`, `io`, `busy`, `deadline`.
        kind: String,
        /// For people, with the whole chain of causes.
        message: String,
    },
}

/// An event of a VMM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// All vCPUs have been entered; the start's or restore's phases are complete.
    Running {
        /// All of them, as in [`Hello`].
        phases: Vec<Phase>,
    },
    /// The guest has acknowledged the transport reset; host connections are served.
    ResetAcknowledged,
    /// It is durable that the image of a restored machine was used, so its memory never runs again. Before
    /// that, what comes out of the guest must not outlive the host. Sent by a VMM that was started with
    /// `--announce consumption`.
    ConsumptionDurable,
    /// The background check of the memory file has ended and found no damage.
    Verified {
        /// Bytes read.
        bytes: u64,
        /// Time it took, in milliseconds.
        ms: u64,
    },
    /// The process ends; also written to `--exit-file`.
    Exiting(ExitReport),
    /// One that this version does not know; to be skipped.
    #[serde(other)]
    Unknown,
}
