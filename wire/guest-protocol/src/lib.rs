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

/// Version of this protocol. guest-init refuses a call of another version.
pub const VERSION: u32 = 1;

/// The vsock port on which guest-init listens.
pub const PORT: u32 = 1024;
