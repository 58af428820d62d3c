//! The HTTP bodies of the Machines API: what clients and the supervisor send to each other.
//!
//! Paths, field names and state names are those of the Fly Machines API
//! (<https://docs.machines.dev>), so that its clients work unchanged. Additions are marked
//! *Extension* and use names that the Fly Machines API does not. Types only: no I/O.
//!
//! The doc comments of types and fields become descriptions in the OpenAPI document. They are
//! written for its readers: no links into the code, and every figure with its unit.

mod app;
mod config;
mod error;
pub mod exec_stream;
mod guest;
mod host;
mod lease;
mod lenient;
mod machine;
mod moment;
mod request;
mod resources;
mod set_aside;
mod start;
mod timing;
mod token;
mod unlisted;
mod vsock;
mod words;

pub use app::{App, AppList, AppOrganization, ListedApp};
pub use config::{
    Check, CheckHeader, CheckKind, CpuTemplate, File, Guest, Init, MachineConfig, Mount, Port,
    PortPolicy, Restart, RestartPolicy, Service, ServiceConcurrency, StopConfig, VsockOptions,
};
pub use error::ErrorBody;
pub use guest::{
    ExecRequest, ExecResponse, FileWritten, ListedProcess, ListenSocket, LogLine, LogSource, Usage,
};
pub use host::HostInfo;
pub use lease::{Lease, LeaseReleased, LeaseRequest, LeaseResponse};
pub use machine::{
    CheckStatus, EventRequest, EventType, ExitEvent, ImageRef, Machine, MachineEvent, MachineState,
    MachineVersion, PublishedPort,
};
pub use request::{
    CreateMachine, MetadataValue, Ok, SignalRequest, StartResponse, StopRequest, UpdateMachine,
};
pub use resources::{MachineResources, ProcessUsage};
pub use set_aside::ImageSetAside;
pub use start::{Attempt, AttemptOutcome, PhaseTime, StartKind};
pub use timing::{Operation, Timing};
pub use token::{CreateToken, CreatedToken, Token, TokenScope};
pub use unlisted::{AdoptMachine, UnlistedMachine};
pub use vsock::{GuestSockets, GuestView, SocketCount, Verdict, VsockDiagnosis, VsockView};
pub use words::split_words;

/// The only app of a host. The Fly Machines API groups machines into apps; a host has exactly one,
/// which need not be created and cannot be removed.
pub const DEFAULT_APP: &str = "default";

/// Request header that carries the nonce of a lease.
pub const LEASE_NONCE_HEADER: &str = "fly-machine-lease-nonce";
