//! The supervisor's flags, and the settings that they resolve to.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use guest_protocol::backoff::Backoff;

use crate::duration;
use crate::model::guest_share::{self, GuestShare};
use crate::model::settings::{PortPolicy, ReadinessLimits, StartSettings, VerifyMode};
use crate::paths::StateDir;

/// Drive the machines of this host and serve the Machines API.
#[derive(Debug, Parser)]
#[command(name = "mctl-supervisor", version)]
pub(crate) struct Arguments {
    /// Directory for the database, images and machines [default: /var/lib/mctl for root, else
    /// $XDG_STATE_HOME/mctl]
    #[arg(long, env = "MCTL_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Also serve the API on this TCP address, for requests with a bearer token
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// File with a token that may do everything; created with a random one if it does not exist
    #[arg(long, value_name = "FILE")]
    bootstrap_token_file: Option<PathBuf>,
    /// Serve TCP with TLS: file with the certificate, followed by its intermediate certificates
    /// (PEM; read again on SIGHUP)
    #[arg(long, value_name = "FILE", env = "MCTL_TLS_CERT", requires_all = ["tls_key", "listen"])]
    tls_cert: Option<PathBuf>,
    /// File with the certificate's private key (PEM)
    #[arg(long, value_name = "FILE", env = "MCTL_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The VMM binary [default: mctl-vmm in this program's directory]
    #[arg(long, value_name = "PATH")]
    vmm: Option<PathBuf>,
    /// The API's Unix socket [default: <state-dir>/api.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Group that may use the socket, too (name or number)
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// Where local vsock ports begin after each start and resume
    #[arg(long, value_enum, default_value = "random")]
    vsock_port_policy: PortPolicy,
    /// Free the guest's end of every saved vsock pair before the transport reset
    #[arg(long, value_enum, default_value = "on")]
    vsock_eviction: Switch,
    /// When a resume checks the memory of its image
    #[arg(long, value_enum, default_value = "background")]
    verify: VerifyMode,
    /// Open the long-lived CPU monitor before the readiness check
    #[arg(long)]
    monitor_first: bool,
    /// Deadline of one readiness attempt
    #[arg(long, value_parser = duration::parse, default_value = "2s")]
    readiness_attempt_timeout: Duration,
    /// Wait after the first failed readiness attempt; doubles with each
    #[arg(long, value_parser = duration::parse, default_value = "25ms")]
    readiness_backoff: Duration,
    /// Longest wait between readiness attempts
    #[arg(long, value_parser = duration::parse, default_value = "1s")]
    readiness_backoff_max: Duration,
    /// Deadline of a whole start or resume
    #[arg(long, value_parser = duration::parse, default_value = "120s")]
    start_timeout: Duration,
    /// Deadline of a suspend; then it is cancelled and the machine runs on
    #[arg(long, value_parser = duration::parse, default_value = "300s")]
    suspend_timeout: Duration,
    /// Starts and resumes that may be under way at the same time [default: CPUs, at least 2]
    #[arg(long, value_name = "N")]
    concurrent_starts: Option<NonZeroUsize>,
    /// Lines per second that a guest may add to its machine's log, after a burst of ten times as many;
    /// further ones are dropped, and the log says how many
    #[arg(long, value_name = "N", default_value_t = guest_share::LOG_LINES_PER_SECOND)]
    guest_log_lines: NonZeroU32,
    /// Commands that may run in a guest at the same time; further ones are refused
    #[arg(long, value_name = "N", default_value_t = guest_share::EXECS)]
    guest_execs: NonZeroU32,
    /// Connections to a guest's published ports at the same time, and at most a sixteenth of the
    /// supervisor's limit of descriptors; further ones wait
    #[arg(long, value_name = "N", default_value_t = guest_share::CONNECTIONS)]
    guest_connections: NonZeroU32,
    /// MiB per second that a guest and all of its clients exchange: published ports, output of commands,
    /// files
    #[arg(long, value_name = "MIB", default_value_t = guest_share::MIB_PER_SECOND)]
    guest_mib_per_second: NonZeroU32,
    /// Die at this step, for tests of crashes
    #[arg(long, value_name = "STEP", hide = true)]
    fail_point: Option<String>,
}

/// A switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

/// The supervisor's settings, resolved.
#[derive(Debug)]
pub(crate) struct Configuration {
    /// The state directory.
    pub(crate) state_dir: StateDir,
    /// TCP address of the API, if it is served there.
    pub(crate) listen: Option<SocketAddr>,
    /// Files of the certificate and its key, if TCP is served with TLS.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    /// File of the bootstrap token.
    pub(crate) bootstrap_token_file: Option<PathBuf>,
    /// The VMM binary.
    pub(crate) vmm: PathBuf,
    /// Unix socket of the API.
    pub(crate) socket: PathBuf,
    /// Group that may use the socket.
    pub(crate) socket_group: Option<String>,
    /// How machines are started unless their configuration says otherwise.
    pub(crate) start_settings: StartSettings,
    /// Deadline of a suspend.
    pub(crate) suspend_timeout: Duration,
    /// Starts and resumes that may be under way at the same time.
    pub(crate) concurrent_starts: usize,
    /// What a guest may use of the supervisor.
    pub(crate) guest_share: GuestShare,
}

impl Arguments {
    /// The step at which this process dies, if a test wants that.
    pub(crate) fn fail_point(&self) -> Option<String> {
        self.fail_point.clone()
    }

    /// Fills in what was not given.
    pub(crate) fn resolve(self) -> anyhow::Result<Configuration> {
        let state_dir = self.state_dir.map_or_else(default_state_dir, Ok)?;
        let state_dir = std::path::absolute(&state_dir)
            .with_context(|| format!("cannot resolve {}", state_dir.display()))?;
        let state_dir = StateDir::new(state_dir)?;
        let vmm = self.vmm.map_or_else(vmm_beside_this_program, Ok)?;
        let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Ok(Configuration {
            socket: self.socket.unwrap_or_else(|| state_dir.api_socket()),
            state_dir,
            listen: self.listen,
            tls: self.tls_cert.zip(self.tls_key),
            bootstrap_token_file: self.bootstrap_token_file,
            vmm: std::path::absolute(&vmm)
                .with_context(|| format!("cannot resolve {}", vmm.display()))?,
            socket_group: self.socket_group,
            start_settings: StartSettings {
                port_policy: self.vsock_port_policy,
                eviction: self.vsock_eviction == Switch::On,
                verify: self.verify,
                monitor_first: self.monitor_first,
                readiness: ReadinessLimits {
                    attempt: self.readiness_attempt_timeout,
                    backoff: Backoff {
                        first: self.readiness_backoff,
                        longest: self.readiness_backoff_max,
                    },
                    total: self.start_timeout,
                },
            },
            suspend_timeout: self.suspend_timeout,
            concurrent_starts: self
                .concurrent_starts
                .map_or(cpus.max(2), NonZeroUsize::get),
            guest_share: GuestShare {
                log_lines_per_second: self.guest_log_lines,
                execs: self.guest_execs,
                connections: self.guest_connections,
                mib_per_second: self.guest_mib_per_second,
            },
        })
    }
}

fn vmm_beside_this_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the path of this program")?;
    Ok(own.parent().unwrap_or(Path::new("/")).join("mctl-vmm"))
}

fn default_state_dir() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/mctl"));
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(base) = set("XDG_STATE_HOME") {
        return Ok(Path::new(&base).join("mctl"));
    }
    let home = set("HOME").context("HOME is not set; give --state-dir")?;
    Ok(Path::new(&home).join(".local/state/mctl"))
}
