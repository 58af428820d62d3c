//! A machine's configuration as its user writes it (`fly.MachineConfig`).
//!
//! Fields that nobody knows are ignored on the way in, as that API does; what this host can't honour
//! is refused by the supervisor with the field's name, never dropped silently.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a machine is made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineConfig {
    /// An image of this host's store, `[REGISTRY/][PATH/]NAME[:TAG][@DIGEST]`; `default` if empty.
    /// The store is flat: registry and path are left out. `NAME` and `NAME:latest` are the image of
    /// that name, any other tag the image that is named `NAME:TAG`. A digest has to be its own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// CPUs and memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Guest>,
    /// What the main process is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
    /// Environment of the main process.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Free key/value pairs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// What happens when the main process ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// How `stop` ends the main process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_config: Option<StopConfig>,
    /// Destroy the machine once it has stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto_destroy: bool,
    /// Published ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// Checks by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<String, Check>,
    /// Disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Files that are in the guest before its main process starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// *Extension*: how this machine's vsock behaves; for experiments such as the matrix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockOptions>,
}

/// *Extension*: how a machine's vsock behaves. What is not given follows the supervisor's flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockOptions {
    /// Where local ports start after each start and resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_policy: Option<PortPolicy>,
    /// Free the guest's end of every saved pair before the transport reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eviction: Option<bool>,
    /// Open the long-lived CPU monitor before the readiness check, as the order was in the
    /// report that this project started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor_first: Option<bool>,
}

/// Policies for the first local port of a VMM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PortPolicy {
    /// Drawn anew at each start and resume.
    #[default]
    Random,
    /// Goes on from the last port that the image holds.
    Continue,
    /// 2^30 every time.
    Fixed,
}

/// CPUs and memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Guest {
    /// `shared` or `performance`; both mean the same on one host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_kind: Option<String>,
    /// vCPUs, 1 to 32.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 32)]
    pub cpus: u32,
    /// Memory in MiB, 64 to 65,536.
    #[serde(default = "default_memory_mib")]
    #[schema(minimum = 64, maximum = 65536)]
    pub memory_mb: u32,
    /// Appended to the kernel's command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_args: Vec<String>,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            cpu_kind: None,
            cpus: one(),
            memory_mb: default_memory_mib(),
            kernel_args: vec![],
        }
    }
}

const fn one() -> u32 {
    1
}

const fn default_memory_mib() -> u32 {
    256
}

/// The main process. `exec` wins over `entrypoint` + `cmd`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Init {
    /// Whole command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// Program and first arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Further arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Give it a terminal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
}

/// What happens when the main process ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Restart {
    /// The policy.
    #[serde(default)]
    pub policy: RestartPolicy,
    /// With `on-failure`: give up after that many restarts in a row; 10 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

/// When a machine whose main process ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    No,
    /// Always, unless it was stopped on request.
    Always,
    /// After a code other than 0, a signal, or a lost VMM.
    #[default]
    // Go writes a policy that was not chosen so.
    #[serde(alias = "")]
    OnFailure,
}

/// How `stop` ends the main process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StopConfig {
    /// Signal name such as `SIGINT`, or its number.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::lenient::maybe_signal"
    )]
    pub signal: Option<String>,
    /// Duration such as `5s`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::duration::read"
    )]
    pub timeout: Option<String>,
}

/// A port of the guest that the host publishes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// `tcp`.
    #[serde(default)]
    pub protocol: String,
    /// Port on the guest's loopback.
    pub internal_port: u16,
    /// Ports on the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// `off`, `stop` or `suspend` after an idle time; `false` is off, `true` is stop.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::lenient::autostop",
        serialize_with = "crate::lenient::write_autostop"
    )]
    pub autostop: Option<String>,
    /// Start on the next connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// *Extension*: idle time before `autostop`, such as `5m` (default).
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::duration::read"
    )]
    pub idle_timeout: Option<String>,
    /// Bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<ServiceConcurrency>,
    /// Checks of this service, shown as `servicecheck-<number>-<type>-<port>`; on its internal port
    /// unless they name another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

/// A port on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// TCP port; 0 lets the host choose.
    #[serde(default)]
    pub port: u16,
    /// In place of `port`: first of a range. The supervisor keeps and shows each port by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_port: Option<u16>,
    /// Last of the range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
    /// Handlers of that API: `http` is carried as raw TCP, as nothing is. `tls` is refused: there
    /// are no certificates for ports of guests, so the program in the guest has to speak it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handlers: Vec<String>,
    /// *Extension*: host address; 127.0.0.1 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// Bounds on the connections of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceConcurrency {
    /// `connections`.
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Most connections at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_limit: Option<u32>,
    /// Kept, not used on one host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_limit: Option<u32>,
}

/// A periodic check of a started machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// What is tried.
    #[serde(rename = "type")]
    pub kind: CheckKind,
    /// Port on the guest's loopback (tcp, http).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Duration such as `15s`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::duration::read"
    )]
    pub interval: Option<String>,
    /// Duration such as `2s`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::duration::read"
    )]
    pub timeout: Option<String>,
    /// Failures do not count for this long after a start.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::duration::read"
    )]
    pub grace_period: Option<String>,
    /// HTTP method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// HTTP path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// HTTP headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<CheckHeader>,
    /// `http`; the guest's loopback is asked without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Kept for that API; there is no TLS to verify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_skip_verify: Option<bool>,
    /// *Extension*: command of an `exec` check.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// `informational` (default) or `readiness`.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "kind")]
    pub purpose: Option<String>,
}

/// A header of an HTTP check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckHeader {
    /// Its name.
    pub name: String,
    /// Sent once per value.
    #[serde(default)]
    pub values: Vec<String>,
}

/// Kinds of [`Check`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// Connects.
    #[default]
    Tcp,
    /// Asks and wants a status below 400.
    Http,
    /// *Extension*: runs a command and wants exit code 0.
    Exec,
}

/// A file in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct File {
    /// Absolute path in the guest; missing parents are made.
    pub guest_path: String,
    /// What is in it, in base64.
    #[serde(default)]
    pub raw_value: String,
    /// Permission bits; 0 is 0644.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schema(maximum = 4095)]
    pub mode: u32,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes the field by reference"
)]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A disk of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mount {
    /// *Extension*: a raw disk image or block device of the host, as an absolute path.
    pub volume: String,
    /// Mount point in the guest.
    pub path: String,
    /// *Extension*: attach and mount it read-only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}
