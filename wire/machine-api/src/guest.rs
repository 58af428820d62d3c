//! What a client asks of a running guest: commands, processes, files, usage, and its log.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST …/exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    /// Program and arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Program and arguments as one string, split as a shell splits words; for older clients.
    /// Ignored if `command` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// Standard input of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// After how many seconds the command is killed; 60 if not given, at most 3,600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

/// Answer to `POST …/exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecResponse {
    /// Exit code of the command; -1 if a signal ended it.
    pub exit_code: i32,
    /// Number of the signal that ended the command; 0 if none did.
    #[serde(default)]
    pub exit_signal: i32,
    /// Standard output. Bytes that are not UTF-8 are replaced by U+FFFD.
    #[serde(default)]
    pub stdout: String,
    /// Standard error. Bytes that are not UTF-8 are replaced by U+FFFD.
    #[serde(default)]
    pub stderr: String,
    /// *Extension*: standard output or standard error was cut off after 4 MiB. `…/exec/stream`
    /// has no such bound.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// A process of the guest, in the answer to `GET …/ps`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListedProcess {
    /// Process id in the guest.
    pub pid: i32,
    /// Command line.
    pub command: String,
    /// Working directory; empty if not known.
    #[serde(default)]
    pub directory: String,
    /// CPU time used, in seconds.
    pub cpu: u64,
    /// Resident memory, in bytes.
    pub rss: u64,
    /// How long the process has run, in seconds; 0 if not known.
    #[serde(default)]
    pub rtime: u64,
    /// When the process started, in seconds since 1970; 0 if not known.
    #[serde(default)]
    pub stime: u64,
    /// Sockets on which the process listens.
    #[serde(default)]
    pub listen_sockets: Vec<ListenSocket>,
}

/// A socket on which a process of the guest listens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListenSocket {
    /// Protocol: `tcp`.
    pub proto: String,
    /// Address and port, such as `127.0.0.1:80` or `[::]:80`.
    pub address: String,
}

/// *Extension*: answer to `PUT …/files`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileWritten {
    /// Size of the file, in bytes.
    pub bytes: u64,
}

/// *Extension*: answer to `GET …/usage`: the last report of the machine's CPU monitor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Whether the monitor has reported yet; until then all other fields are zero.
    pub known: bool,
    /// CPU usage between the last two reports, in percent of one vCPU.
    pub cpu_percent: f64,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [f32; 3],
    /// Memory that the guest's kernel manages, in KiB.
    pub memory_total_kib: u64,
    /// Memory that is available to new processes, in KiB.
    pub memory_available_kib: u64,
    /// Uptime of the guest in milliseconds, including the time that it was suspended.
    pub uptime_ms: u64,
}

/// *Extension*: one line of `GET …/logs`, which sends a JSON object per line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// When the line was written: RFC 3339 in UTC, with microseconds.
    pub time: String,
    /// Who wrote the line.
    pub source: LogSource,
    /// The line without its line end.
    pub text: String,
}

/// *Extension*: who wrote a line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    /// The main process, on its standard output.
    Stdout,
    /// The main process, on its standard error.
    Stderr,
    /// Kernel and guest-init, on the serial console.
    Console,
    /// The supervisor, about this machine.
    Supervisor,
}
