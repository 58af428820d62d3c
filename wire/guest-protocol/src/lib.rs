//! The protocol between the supervisor and guest-init over a vsock connection.
//!
//! Messages, their version, framing as functions on bytes, and the pace of a readiness check.
//! Nothing here does I/O: both ends have their own streams. Changing this crate changes guest
//! images; keep it small.
//!
//! A connection carries one request. The supervisor connects to [`PORT`] and sends one
//! [`Frame::Json`] with a [`Call`]. guest-init answers with one [`Frame::Json`] with a [`Reply`].
//! A request whose doc says *streams* continues after [`Reply::Streaming`] as its doc describes.

pub mod backoff;
pub mod base64;
mod frame;
mod message;
mod resources;

pub use frame::{Decoded, Frame, FrameError, HEADER_BYTES, MAX_PAYLOAD_BYTES, decode, encode};
pub use message::{
    Call, CpuSample, ENTROPY_BYTES, ExecSpec, Exit, FileKind, GuestStatus, LaunchFile,
    ListeningSocket, MainProcess, MainProcessState, OpenVsocks, OutputRecord, OutputSource,
    ProcessEntry, Refusal, RefusalKind, Reply, Request, StreamEnd, TerminalSize, VsockCount, Wake,
};
pub use resources::{GuestResources, InitUsage};

/// Version of this protocol. Raised, by one in a release, when a receiver of the version before would
/// misunderstand; what is only added leaves it as it is: readers ignore fields that they do not know, and a
/// request that guest-init does not know is refused as [`RefusalKind::Invalid`].
pub const VERSION: u32 = 1;

/// The oldest version that both ends still speak: that of the release before. guest-init refuses calls that
/// are older or newer than these.
pub const OLDEST_VERSION: u32 = 1;

/// Whether guest-init understands a call of that version.
#[must_use]
pub const fn speaks(version: u32) -> bool {
    OLDEST_VERSION <= version && version <= VERSION
}

/// The version in which a supervisor calls a guest-init whose own version is `theirs`; none if there is
/// none that both speak.
///
/// A guest of the release after ours still speaks our version.
#[must_use]
pub const fn common_version(theirs: u32) -> Option<u32> {
    if theirs < OLDEST_VERSION || theirs > VERSION + 1 {
        None
    } else if theirs < VERSION {
        Some(theirs)
    } else {
        Some(VERSION)
    }
}

/// The vsock port on which guest-init listens.
pub const PORT: u32 = 1024;
