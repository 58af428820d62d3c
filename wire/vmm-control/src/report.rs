//! Figures and reports of a VMM.

use serde::{Deserialize, Serialize};

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

/// Figures of a suspend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspendFigures {
    /// In order, adjacent.
    pub phases: Vec<Phase>,
    /// Bytes of guest memory written to the image.
    pub memory_bytes_written: u64,
    /// All bytes written to the image.
    pub image_bytes_written: u64,
    /// Bytes that the image occupies on disk.
    pub image_bytes_allocated: u64,
    /// Pages (4 KiB) that had changed.
    pub pages_changed: u64,
    /// How changed pages were found: `pagemap_scan`, `pagemap` or `content` (first suspend after a boot).
    pub dirty_source: String,
}

/// Counters of a machine's vsock device since its VMM started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockCounters {
    /// Connection requests sent to the guest.
    pub requests_sent: u64,
    /// Of these, accepted.
    pub requests_accepted: u64,
    /// Of these, answered with RST.
    pub requests_reset: u64,
    /// Of these, not answered in time.
    pub requests_unanswered: u64,
    /// Connections from the guest to the host that were accepted.
    pub guest_connections_accepted: u64,
    /// Connections from the guest to the host that were refused.
    pub guest_connections_refused: u64,
    /// Saved pairs evicted from the guest before a transport reset.
    pub pairs_evicted: u64,
    /// Host packets held back while the reset gate was closed.
    pub gate_held_packets: u64,
    /// Guest packets on connections from before the restore, dropped while the reset gate was closed.
    pub gate_dropped_packets: u64,
    /// Malformed or unexpected guest packets dropped.
    pub guest_packets_dropped: u64,
    /// Bytes carried from the host to the guest.
    pub bytes_to_guest: u64,
    /// Bytes carried from the guest to the host.
    pub bytes_from_guest: u64,
    /// Open connections now.
    pub live_connections: u64,
    /// The same by state; absent in the answer of a VMM that does not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<ConnectionCounts>,
    /// The reset gate is closed now.
    pub gate_closed: bool,
    /// First local port of this VMM.
    pub first_local_port: u32,
    /// Local port that the next connection tries first.
    pub next_local_port: u32,
    /// Policy: `random`, `continue` or `fixed`.
    pub port_policy: String,
    /// The last pairs that the guest answered with RST, newest last, at most 64.
    pub last_collided: Vec<CollidedPair>,
}

/// Number of open vsock connections by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionCounts {
    /// The host has connected; the request waits for the guest to take it.
    pub requesting: u64,
    /// The guest has the request and has not answered yet.
    pub requested: u64,
    /// The guest has connected; the response waits for the guest to take it.
    pub accepting: u64,
    /// Data flows.
    pub established: u64,
    /// The guest's end is closed; the host still reads what the guest sent before.
    pub draining: u64,
}

impl ConnectionCounts {
    /// Names of the states, as on the wire, with their counts.
    #[must_use]
    pub fn by_state(&self) -> [(&'static str, u64); 5] {
        [
            ("requesting", self.requesting),
            ("requested", self.requested),
            ("accepting", self.accepting),
            ("established", self.established),
            ("draining", self.draining),
        ]
    }
}

/// A pair on which a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollidedPair {
    /// Host end.
    pub local_port: u32,
    /// Guest end.
    pub peer_port: u32,
    /// When, on CLOCK_MONOTONIC.
    pub at_ns: u64,
}

/// The report that a VMM writes when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// As given on the command line.
    pub machine_id: String,
    /// As given on the command line.
    pub generation: u64,
    /// Why it ended.
    pub reason: ExitReason,
    /// For people; the chain of causes where there is one.
    pub message: String,
}

/// Why a VMM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered itself off.
    GuestPowerOff,
    /// The guest asked for a reset (also: it panicked, as init sets `panic=-1`).
    GuestReset,
    /// The guest could not continue (triple fault, KVM internal error).
    GuestCrashed,
    /// A suspend is complete.
    Suspended,
    /// The supervisor requested it, or a signal.
    Quit,
    /// The image was refused before the guest ran: it is damaged, or not this machine's.
    ImageRefused,
    /// The image is whole, and this host or this VMM cannot run it.
    ImageUnfit,
    /// Memory verification found damage while the guest ran.
    ImageDamaged,
    /// KVM, a disk or another resource of the host failed.
    HostFailed,
}
