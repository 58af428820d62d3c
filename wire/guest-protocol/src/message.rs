//! The messages. Field names are part of the protocol; `tests/golden.rs` has their exact JSON.

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::resources::GuestResources;

/// Bytes of entropy in a [`Wake`].
pub const ENTROPY_BYTES: usize = 32;

/// First message of a connection, sent by the supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The version that sender and receiver have in common, see [`crate::common_version`].
    pub version: u32,
    /// Generation of the machine: raised at each launch of a VMM. On the first call of a newer
    /// generation guest-init closes every connection of older ones.
    pub generation: u64,
    /// Sent until the first status of this generation has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<Wake>,
    /// The request.
    pub request: Request,
}

impl Call {
    /// A call in this crate's version of the protocol.
    #[must_use]
    pub fn new(generation: u64, wake: Option<Wake>, request: Request) -> Self {
        Self {
            version: crate::VERSION,
            generation,
            wake,
            request,
        }
    }
}

/// Time and entropy for a guest that may have been suspended. Applied once per generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wake {
    /// The host's CLOCK_REALTIME in nanoseconds since 1970, read right before sending.
    pub realtime_ns: u64,
    /// 32 bytes of the host's entropy, in hexadecimal, for the guest kernel's random pool.
    pub entropy_hex: String,
}

impl Wake {
    /// A wake-up of the host's time and entropy.
    #[must_use]
    pub fn new(realtime_ns: u64, entropy: &[u8; ENTROPY_BYTES]) -> Self {
        Self {
            realtime_ns,
            entropy_hex: hex::encode(entropy),
        }
    }

    /// The entropy, decoded; none if it has another length or is not hexadecimal.
    #[must_use]
    pub fn entropy(&self) -> Option<[u8; ENTROPY_BYTES]> {
        let mut bytes = [0; ENTROPY_BYTES];
        hex::decode_to_slice(&self.entropy_hex, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// A request of the supervisor to guest-init.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Answered by [`Reply::Status`]. The readiness check.
    Status,
    /// Starts the machine's main process; succeeds if this very process (same spec) is running
    /// already. Answered by [`Reply::Done`].
    Launch {
        /// The main process.
        main: ExecSpec,
        /// Block devices to mount first, in order: (device, mount point, read only).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        mounts: Vec<(String, String, bool)>,
        /// Files to write after the mounts, before the main process starts.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        files: Vec<LaunchFile>,
        /// Host name of the guest.
        hostname: String,
    },
    /// *Streams* one JSON [`CpuSample`] per interval until the connection ends.
    CpuUsage {
        /// Time between samples, in milliseconds, 10 to 3,600,000.
        interval_ms: u32,
    },
    /// *Streams* the main process's output as JSON [`OutputRecord`]s: first the buffered records
    /// from `from_sequence` on, then new ones. Once the main process has ended and all of its
    /// output is sent, a JSON [`StreamEnd::Exited`] follows and guest-init closes.
    Output {
        /// First record wanted.
        from_sequence: u64,
    },
    /// Runs a further process. *Streams*: the supervisor sends Stdin frames and JSON
    /// [`TerminalSize`]; guest-init sends Stdout and Stderr frames and finally a JSON
    /// [`StreamEnd`]. If the supervisor closes first, even if only for sending, the process group is
    /// killed.
    Exec {
        /// The process to run.
        exec: ExecSpec,
        /// Time after which it is killed, in milliseconds; 0 means never.
        #[serde(default)]
        timeout_ms: u64,
    },
    /// Sends a signal to the main process. Answered by [`Reply::Done`].
    Signal {
        /// Signal number, 1 to 64.
        signal: i32,
    },
    /// Ends the main process (signal, then SIGKILL after the timeout), syncs, unmounts and powers
    /// the guest off. Answered by [`Reply::Done`] at once. Meanwhile guest-init continues to serve.
    /// Once the main process has ended, it serves for up to two more seconds, so that the
    /// supervisor can ask for the end.
    PowerOff {
        /// Signal for the main process, 1 to 64.
        signal: i32,
        /// Time it has, in milliseconds.
        timeout_ms: u64,
    },
    /// Connects to a TCP port on the guest's loopback. *Streams* raw bytes without frames after
    /// the reply, both ways, half-close included.
    Forward {
        /// TCP port.
        port: u16,
    },
    /// Answered by [`Reply::Processes`].
    Processes,
    /// Answered by [`Reply::Resources`]. A guest-init that does not know this request refuses it as
    /// [`RefusalKind::Invalid`].
    Resources,
    /// *Streams* a file out of the guest: JSON [`FileKind`], then Data frames, an empty one at the
    /// end, then a JSON [`StreamEnd`].
    ReadFile {
        /// Absolute path.
        path: String,
    },
    /// *Streams* a file into the guest: Data frames from the supervisor, an empty one at the end;
    /// a JSON [`StreamEnd`] answers. The file is written under another name and then renamed, so
    /// that it appears as a whole or not at all.
    WriteFile {
        /// Absolute path; missing parents are created.
        path: String,
        /// Permission bits, such as 0o644.
        mode: u32,
    },
}

/// A file to write before the main process starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchFile {
    /// Absolute path; missing parents are created.
    pub path: String,
    /// Permission bits, such as 0o644.
    pub mode: u32,
    /// Its content, in [`crate::base64`].
    pub content: String,
}

/// A process to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Program and arguments; not empty. A program name without `/` is looked up in PATH.
    pub argv: Vec<String>,
    /// Added to the environment that guest-init gives its children.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Size of the terminal, if it gets one (stdout and stderr are then one stream).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters per line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// First message of guest-init.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// Answers [`Request::Status`].
    Status(GuestStatus),
    /// The request is done.
    Done,
    /// The stream that the request describes follows.
    Streaming,
    /// Answers [`Request::Processes`].
    Processes {
        /// All processes of the guest, by pid.
        processes: Vec<ProcessEntry>,
    },
    /// Answers [`Request::Resources`].
    Resources(GuestResources),
    /// The request is refused.
    Refused(Refusal),
}

/// Why guest-init refuses a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people: lower case, no full stop.
    pub message: String,
}

/// Kinds of [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The call is of another protocol version.
    Version,
    /// The call's generation is older than one already seen.
    StaleGeneration,
    /// The call is malformed or out of range.
    Invalid,
    /// Something that the request names does not exist: program, file, listener, main process.
    NotFound,
    /// Another main process is running or has ended.
    Conflict,
    /// The guest's kernel or disk failed.
    Failed,
}

/// State of the guest, as guest-init sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// `/proc/sys/kernel/random/boot_id`: changes with each boot and never on a resume.
    pub boot_id: String,
    /// Newest generation seen.
    pub generation: u64,
    /// [`crate::VERSION`] of guest-init. The first release did not say it.
    #[serde(default = "version_of_the_first_release")]
    pub protocol: u32,
    /// Version of guest-init; ends in `+leaky` if it leaks on purpose (test image).
    pub init_version: String,
    /// Guest's CLOCK_BOOTTIME in milliseconds.
    pub uptime_ms: u64,
    /// Guest's CLOCK_REALTIME in nanoseconds since 1970.
    pub realtime_ns: u64,
    /// How far the clock was stepped at this generation's wake-up, in milliseconds. Zero if it was
    /// ahead by at most a second, the time that delivering the call may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_step_ms: Option<i64>,
    /// Open vsock sockets of the guest without the one that carries this reply.
    pub open_vsocks: OpenVsocks,
    /// The main process.
    pub main: MainProcess,
}

fn version_of_the_first_release() -> u32 {
    1
}

/// Open vsock sockets of the guest. In a healthy guest right after a resume all counts of older
/// generations are zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenVsocks {
    /// Connected sockets (live or dead but unclosed), not listeners.
    pub total: u32,
    /// Of these, opened in a generation older than the newest: by any process if the kernel has a
    /// list, else by guest-init.
    pub older_generations: u32,
    /// By state and, if guest-init knows it, generation.
    pub counts: Vec<VsockCount>,
    /// Where the figures come from: `vsock_diag` (the kernel's list, all processes) or `init`
    /// (guest-init's own sockets only).
    pub source: String,
}

/// Number of sockets with the same state and generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockCount {
    /// `established`, `closing`, `closed` (reset by a resume but not closed by its owner),
    /// `detached` (of an older generation, no longer in the kernel's tables, so that its pair is
    /// free, but not closed by guest-init), `open` (if [`OpenVsocks::source`] is `init`), …
    pub state: String,
    /// Generation in which it was opened; for dead sockets of other processes, the generation that
    /// left them over. None if guest-init does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// How many.
    pub count: u32,
}

/// The machine's main process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MainProcess {
    /// Its state.
    pub state: MainProcessState,
    /// Its pid while it is running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Sequence number that its next output record will carry.
    pub next_output_sequence: u64,
}

/// State of the main process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MainProcessState {
    /// No [`Request::Launch`] yet.
    Absent,
    /// It is running.
    Running,
    /// It has ended; guest-init powers the guest off once it has reported the end, or two seconds
    /// later.
    Exited,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Signal, if one killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The guest kernel's out-of-memory killer ended it.
    #[serde(default)]
    pub oom_killed: bool,
    /// It was killed because its timeout passed.
    #[serde(default)]
    pub timed_out: bool,
}

/// One sample of [`Request::CpuUsage`]'s stream. The times count from boot, so that no usage is lost
/// with a sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CpuSample {
    /// Guest's CLOCK_BOOTTIME in milliseconds.
    pub uptime_ms: u64,
    /// CPU time not spent idle, all vCPUs, in milliseconds.
    pub busy_ms: u64,
    /// CPU time spent idle, all vCPUs, in milliseconds.
    pub idle_ms: u64,
    /// Load averages over 1, 5 and 15 minutes. Finite: others have no form in JSON.
    #[serde(deserialize_with = "finite")]
    pub load: [f32; 3],
    /// All memory that the kernel manages, in KiB.
    pub memory_total_kib: u64,
    /// Memory available to new processes, in KiB.
    pub memory_available_kib: u64,
}

/// A JSON number may be larger than any `f32`, and is infinite then.
fn finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[f32; 3], D::Error> {
    let load = <[f32; 3]>::deserialize(deserializer)?;
    if load.iter().all(|average| average.is_finite()) {
        Ok(load)
    } else {
        Err(D::Error::custom("a load average is out of range"))
    }
}

/// One line (or part of a long one) that the main process printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRecord {
    /// Counts up by one. A gap is the number of records that the bounded buffer has lost.
    pub sequence: u64,
    /// Guest's CLOCK_REALTIME in nanoseconds since 1970.
    pub realtime_ns: u64,
    /// The stream.
    pub source: OutputSource,
    /// The text without its line end; invalid UTF-8 replaced.
    pub text: String,
}

/// Stream of an [`OutputRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputSource {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One process of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// Process id.
    pub pid: i32,
    /// Parent's id.
    pub parent_pid: i32,
    /// Its command line, or the name in brackets for kernel threads.
    pub command: String,
    /// Single letter of `/proc/<pid>/stat`.
    pub state: String,
    /// CPU time used, in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// Its working directory; empty if it cannot be read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub directory: String,
    /// When it was started, in seconds since 1970 by the guest's clock.
    #[serde(default)]
    pub started_at_s: u64,
    /// How long it has run, in seconds; a suspend does not count.
    #[serde(default)]
    pub running_s: u64,
    /// Sockets on which it listens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listening: Vec<ListeningSocket>,
}

/// A socket on which a process listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListeningSocket {
    /// `tcp`.
    pub protocol: String,
    /// Address and port, such as `127.0.0.1:80` or `[::]:80`.
    pub address: String,
}

/// The file that [`Request::ReadFile`] opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileKind {
    /// Size in bytes when it was opened.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
}

/// Last message of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamEnd {
    /// A process ended.
    Exited(Exit),
    /// A transfer is complete.
    Complete {
        /// Bytes transferred.
        bytes: u64,
    },
    /// The stream failed before its end.
    Refused(Refusal),
}
