//! A machine's configuration as its user writes it (`fly.MachineConfig`).
//!
//! Unknown fields are ignored when a configuration is read, as the Fly Machines API does. A known
//! field that this host cannot honour is refused by the supervisor with the field's name, never
//! dropped silently.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The configuration of a machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineConfig {
    /// Image in this host's store, written `[REGISTRY/][PATH/]NAME[:TAG][@DIGEST]`; `default` if
    /// empty. Registry and path are ignored, because the store is flat. `NAME` and `NAME:latest`
    /// mean the image `NAME`; any other tag means the image `NAME:TAG`. A digest must be that of
    /// the image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// CPUs and memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Guest>,
    /// The main process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
    /// Environment variables of the main process.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Key/value pairs for the user; mctl does not interpret them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Whether the machine starts again when its main process ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// How a stop ends the main process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_config: Option<StopConfig>,
    /// Destroy the machine when it has stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto_destroy: bool,
    /// Ports of the guest that the host publishes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// Periodic checks, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<String, Check>,
    /// Disks to attach and mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Files to write into the guest before its main process starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// *Extension*: how this machine's vsock behaves; for experiments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockOptions>,
}

/// *Extension*: how a machine's vsock behaves. Fields that are not given follow the supervisor's
/// flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockOptions {
    /// How the first local port is chosen after each start and resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_policy: Option<PortPolicy>,
    /// At a resume, free the guest's end of every saved connection before the transport reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eviction: Option<bool>,
    /// Open the long-lived connection of the CPU monitor before the readiness check. This was
    /// the order in the original report of slow resumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor_first: Option<bool>,
}

/// How a VMM chooses its first local vsock port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PortPolicy {
    /// A random port at each start and resume.
    #[default]
    Random,
    /// The port after the last one that the image records.
    Continue,
    /// Always 2^30.
    Fixed,
}

/// CPUs and memory of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Guest {
    /// `shared` or `performance`; this host treats both the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_kind: Option<String>,
    /// Number of vCPUs, 1 to 32.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 32)]
    pub cpus: u32,
    /// Memory in MiB, 64 to 65,536.
    #[serde(default = "default_memory_mib")]
    #[schema(minimum = 64, maximum = 65536)]
    pub memory_mb: u32,
    /// Arguments that are appended to the command line of the guest's kernel.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_args: Vec<String>,
    /// *Extension*: the processor that the guest sees.
    #[serde(default, skip_serializing_if = "CpuTemplate::is_host")]
    pub cpu_template: CpuTemplate,
}

/// *Extension*: the processor that a guest sees. With a level of the x86-64 psABI a suspended machine can
/// be resumed on every host of that level and vendor, under older and newer kernels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CpuTemplate {
    /// All that KVM offers on the host.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// The level x86-64-v2: SSE4.2, POPCNT, CMPXCHG16B.
    #[serde(rename = "x86-64-v2")]
    X86_64V2,
    /// The level x86-64-v3: AVX2, BMI, FMA, MOVBE, and AES, CLMUL and RDRAND.
    #[serde(rename = "x86-64-v3")]
    X86_64V3,
}

impl CpuTemplate {
    /// All, with their names on the wire.
    pub const ALL: [(Self, &'static str); 3] = [
        (Self::Host, "host"),
        (Self::X86_64V2, "x86-64-v2"),
        (Self::X86_64V3, "x86-64-v3"),
    ];

    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(template, _)| *template == self);
        found.map_or("host", |(_, name)| name)
    }

    fn is_host(&self) -> bool {
        *self == Self::Host
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            cpu_kind: None,
            cpus: one(),
            memory_mb: default_memory_mib(),
            kernel_args: vec![],
            cpu_template: CpuTemplate::Host,
        }
    }
}

const fn one() -> u32 {
    1
}

const fn default_memory_mib() -> u32 {
    256
}

/// The main process. `exec` takes precedence over `entrypoint` and `cmd`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Init {
    /// The whole command: program and arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// Program and first arguments; `cmd` follows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Further arguments; without an `entrypoint`, program and arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Run the main process on a terminal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
}

/// Whether a machine starts again when its main process ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Restart {
    /// When it starts again.
    #[serde(default)]
    pub policy: RestartPolicy,
    /// With `on-failure`: the number of restarts in a row after which the supervisor gives up;
    /// 10 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

/// When a machine starts again after its main process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    No,
    /// Always, unless a user stopped it.
    Always,
    /// After an exit code other than 0, after a signal, or if the VMM ended.
    #[default]
    // Go clients write an unset policy as an empty string.
    #[serde(alias = "")]
    OnFailure,
}

// `StopRequest` has the same fields: the Fly Machines API has two schemas with different defaults.
/// How a stop ends the main process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StopConfig {
    /// Name or number of the signal to send; `SIGINT` if not given.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::lenient::optional_signal"
    )]
    pub signal: Option<String>,
    /// How long the main process may take to end before it is killed, such as `5s` (the
    /// default); at most 5 minutes.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::lenient::duration"
    )]
    pub timeout: Option<String>,
}

/// A port of the guest that the host publishes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// Always `tcp`.
    #[serde(default)]
    pub protocol: String,
    /// Port on the guest's loopback address.
    pub internal_port: u16,
    /// Ports on the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// What to do with the machine after `idle_timeout` without a connection: `off` (nothing),
    /// `stop` or `suspend`. `false` means `off`, `true` means `stop`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::lenient::autostop",
        serialize_with = "crate::lenient::write_autostop"
    )]
    pub autostop: Option<String>,
    /// Start the machine when somebody connects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// *Extension*: how long without a connection counts as idle, such as `5m` (the default).
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::lenient::duration"
    )]
    pub idle_timeout: Option<String>,
    /// Bounds on the number of connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<ServiceConcurrency>,
    /// Checks of this service, shown as `servicecheck-<number>-<type>-<port>`. They use the
    /// internal port unless they name another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

/// A port on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// TCP port; 0 means that the host chooses a free one.
    #[serde(default)]
    pub port: u16,
    /// First port of a range, in place of `port`. The supervisor stores and shows each port of
    /// the range separately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_port: Option<u16>,
    /// Last port of the range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
    /// Handlers of the Fly Machines API. With `http`, as without handlers, bytes are passed on
    /// unchanged. `tls` is refused: the host has no certificates for guests, so the program in
    /// the guest has to do TLS itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handlers: Vec<String>,
    /// *Extension*: IP address of the host to listen on; 127.0.0.1 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// Bounds on the number of connections of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceConcurrency {
    /// What is counted; always `connections`.
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The most connections that may be open at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_limit: Option<u32>,
    /// Stored, but not used: one host has nothing to balance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_limit: Option<u32>,
}

/// A periodic check of a started machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// What the check does.
    #[serde(rename = "type")]
    pub kind: CheckKind,
    /// Port on the guest's loopback address, for `tcp` and `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Time between two checks, such as `15s` (the default); at least `100ms`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::lenient::duration"
    )]
    pub interval: Option<String>,
    /// How long one check may take, such as `5s` (the default).
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::lenient::duration"
    )]
    pub timeout: Option<String>,
    /// How long after a start failures do not count yet, such as `1s` (the default).
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::lenient::duration"
    )]
    pub grace_period: Option<String>,
    /// HTTP method; `GET` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// HTTP path; `/` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// HTTP headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<CheckHeader>,
    /// Always `http`: checks do not use TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Stored for clients of the Fly Machines API, but not used: checks do not use TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_skip_verify: Option<bool>,
    /// *Extension*: program and arguments, for `exec`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// `informational` (the default) or `readiness`. While a readiness check fails, published
    /// ports hold new connections back.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "kind")]
    pub purpose: Option<String>,
}

/// A header of an HTTP check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckHeader {
    /// Name of the header.
    pub name: String,
    /// Values; the header is sent once for each.
    #[serde(default)]
    pub values: Vec<String>,
}

/// What a check does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// Connects to a port.
    #[default]
    Tcp,
    /// Sends an HTTP request; a status below 400 passes.
    Http,
    /// *Extension*: runs a command; exit code 0 passes.
    Exec,
}

/// A file to write into the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct File {
    /// Absolute path in the guest; missing parent directories are created.
    pub guest_path: String,
    /// Content of the file, in base64.
    #[serde(default)]
    pub raw_value: String,
    /// Permission bits; 0 means 0644 (octal).
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
    /// *Extension*: absolute path of a raw disk image or a block device on the host.
    pub volume: String,
    /// Mount point in the guest; an absolute path below `/`.
    pub path: String,
    /// *Extension*: attach and mount the disk read-only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}
