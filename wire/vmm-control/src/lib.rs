//! The protocol between the supervisor and a VMM on the control socket.
//!
//! One JSON object per line, both ways. The VMM first sends [`Message::Hello`]; then the
//! supervisor sends [`Request`]s, each answered by one [`Message::Reply`] with its id, in
//! order of completion. [`Message::Event`]s may come at any time, on every open connection.
//! Times are CLOCK_MONOTONIC of the host in nanoseconds, so that the times of both processes can be
//! compared. Nothing here does I/O.

mod message;
mod report;

pub use message::{
    ANNOUNCE_CONSUMPTION, Event, Hello, Message, Protocols, Reply, Request, RequestBody, RunState,
};
pub use report::{
    CollidedPair, ConnectionCounts, ExitReason, ExitReport, Phase, SuspendFigures, VsockCounters,
};

/// Version of this protocol, in [`Hello`]. Raised when a sender of the version before would be
/// misunderstood; what is only added leaves it as it is: readers ignore fields, events and messages that
/// they do not know.
pub const VERSION: u32 = 1;

/// The oldest version that this crate's types still read: that of the release before.
pub const OLDEST_VERSION: u32 = 1;

/// Whether a VMM of that version is understood.
#[must_use]
pub const fn speaks(version: u32) -> bool {
    OLDEST_VERSION <= version && version <= VERSION
}

/// Longest line that either end accepts, in bytes.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// Exit codes of the VMM, for people and scripts; [`ExitReport`] holds the same and more.
pub mod exit_code {
    /// The guest powered off, or a suspend completed.
    pub const SUCCESS: i32 = 0;
    /// The VMM failed while the guest ran; the log and the exit report say why.
    pub const FAILED: i32 = 1;
    /// Invalid flags.
    pub const USAGE: i32 = 2;
    /// The guest asked for a reset.
    pub const GUEST_RESET: i32 = 3;
    /// The image was refused before the guest ran: it is damaged.
    pub const IMAGE_REFUSED: i32 = 4;
    /// KVM, a disk or another resource of the host could not be used.
    pub const HOST_REFUSED: i32 = 5;
    /// Verification found damaged memory after a lazy resume.
    pub const IMAGE_DAMAGED: i32 = 6;
    /// The image is whole, and this host cannot run it.
    pub const IMAGE_UNFIT: i32 = 7;
}
