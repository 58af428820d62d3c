//! The HTTP bodies of the Machines API: what `mctl` and the supervisor say to each other.
//!
//! Paths, field names and state names are those of the Fly Machines API
//! (<https://docs.machines.dev>), so that clients written for it work unchanged; what is ours is
//! marked *extension* and lives under names that API does not use. Types only: no I/O.

mod app;
mod config;
mod duration;
pub mod exec_stream;
mod lenient;
mod machine;
mod moment;
mod request;
mod timing;
mod token;
mod words;

pub use app::{App, AppList, AppOrganization, ListedApp};
pub use config::{
    Check, CheckHeader, CheckKind, File, Guest, Init, MachineConfig, Mount, Port, PortPolicy,
    Restart, RestartPolicy, Service, ServiceConcurrency, StopConfig, VsockOptions,
};
pub use machine::{
    CheckStatus, ErrorBody, EventRequest, EventType, ExitEvent, ImageRef, Machine, MachineEvent,
    MachineState, MachineVersion, PublishedPort, StartKind,
};
pub use request::{
    CreateMachine, ExecRequest, ExecResponse, FileWritten, Lease, LeaseReleased, LeaseRequest,
    LeaseResponse, ListedProcess, ListenSocket, LogLine, LogSource, MetadataValue, Ok,
    SignalRequest, StartResponse, StopRequest, UpdateMachine, Usage,
};
pub use timing::{
    Attempt, AttemptOutcome, GuestSockets, GuestView, HostInfo, Operation, PhaseTime, SocketCount,
    Timing, Verdict, VsockDiagnosis, VsockView,
};

pub use words::split_words;

pub use token::{CreateToken, CreatedToken, Token, TokenScope};

/// The only app of a host. That API sorts machines into apps; a host has one of them, which needs
/// not be made and can't be removed.
pub const DEFAULT_APP: &str = "default";

/// Request header that carries a lease's nonce.
pub const LEASE_NONCE_HEADER: &str = "fly-machine-lease-nonce";
