//! What the supervisor and guest-init say to each other over one vsock connection.
//!
//! Messages, their version, and framing as functions on bytes. Nothing here does I/O: both
//! ends bring their own stream. Changing this crate changes guest images; keep it small.
//!
//! A connection carries one request. The supervisor opens it to [`PORT`] and sends one
//! [`Frame::Json`] holding a [`Call`]. guest-init answers with one [`Frame::Json`] holding a
//! [`Reply`]. Requests whose doc says *streams* go on after [`Reply::Streaming`]: see each.

pub mod backoff;
pub mod base64;
mod frame;
mod message;

pub use frame::{Decoded, Frame, FrameError, HEADER_BYTES, MAX_PAYLOAD_BYTES, decode, encode};
pub use message::{
    Call, CpuSample, ENTROPY_BYTES, ExecSpec, Exit, FileKind, GuestStatus, LaunchFile,
    ListeningSocket, MainProcess, MainProcessState, OpenVsocks, OutputRecord, OutputSource,
    ProcessEntry, Refusal, RefusalKind, Reply, Request, StreamEnd, TerminalSize, VsockCount, Wake,
};

/// Version of this protocol. Both ends refuse a call of another version.
pub const VERSION: u32 = 1;

/// The vsock port on which guest-init listens.
pub const PORT: u32 = 1024;
