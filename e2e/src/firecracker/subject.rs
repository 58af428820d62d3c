//! Firecracker as a subject of cycles.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cycles::{
    Attempt, GuestObservation, Phases, ResumeOutcome, Subject, SubjectDescription, SuspendOutcome,
};
use guest_protocol::{ExecSpec, Frame, GuestStatus, Reply, Request};
use hyper::Method;
use serde_json::json;

use super::api::{self, ApiError};
use super::guest::{self, CallError, Connection};
use super::process::{Process, ProcessError};
use super::readiness::{LIMITS, NotReady, retry};
use crate::counter;

/// Deadline of other calls to init.
const CALL_DEADLINE: Duration = Duration::from_secs(20);
/// Pause between two reads of the counter.
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// What to boot, and how.
#[derive(Debug, Clone)]
pub struct FirecrackerOptions {
    /// The user's binary.
    pub binary: PathBuf,
    /// Uncompressed kernel.
    pub kernel: PathBuf,
    /// Initramfs with guest-init.
    pub initramfs: PathBuf,
    /// Folder for sockets, snapshots and logs.
    pub folder: PathBuf,
    /// Guest memory.
    pub memory_mib: u32,
    /// Guest processors.
    pub vcpus: u32,
    /// Whether the long-lived monitor connects before the status check.
    pub monitor_first: bool,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum FirecrackerError {
    /// The folder for its files cannot be created.
    #[error("cannot create {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The process could not be started or ended.
    #[error("cannot run the VMM")]
    Process(#[from] ProcessError),
    /// A call to its API failed.
    #[error("cannot drive the VMM")]
    Api(#[from] ApiError),
    /// A call to init failed.
    #[error("cannot {what}")]
    Guest {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: CallError,
    },
    /// The readiness check gave up.
    #[error("the guest did not become ready")]
    NotReady(#[from] NotReady),
    /// The step needs a VMM, and none runs.
    #[error("cannot {what}: no VMM runs")]
    NotRunning {
        /// What was attempted.
        what: &'static str,
    },
}

/// A machine in Firecracker.
#[derive(Debug)]
pub struct Firecracker {
    options: FirecrackerOptions,
    version: String,
    process: Option<Process>,
    monitor: Option<Connection>,
    generation: u64,
}

impl Firecracker {
    /// Boots it and starts the counter in the guest.
    ///
    /// # Errors
    /// [`FirecrackerError`] of the step that failed.
    pub async fn boot(options: FirecrackerOptions) -> Result<Self, FirecrackerError> {
        let folder = options.folder.clone();
        std::fs::create_dir_all(&folder).map_err(|source| FirecrackerError::Folder {
            path: folder.clone(),
            source,
        })?;
        let process = Process::start(&options.binary, &folder).await?;
        let settings = [
            (
                "/boot-source",
                json!({
                    "kernel_image_path": options.kernel,
                    "initrd_path": options.initramfs,
                    "boot_args": "console=ttyS0 reboot=k panic=-1 quiet",
                }),
            ),
            (
                "/machine-config",
                json!({ "vcpu_count": options.vcpus, "mem_size_mib": options.memory_mib }),
            ),
            (
                "/vsock",
                json!({ "guest_cid": 3, "uds_path": folder.join("v.sock") }),
            ),
            ("/actions", json!({ "action_type": "InstanceStart" })),
        ];
        for (path, body) in &settings {
            api::call(&process.api, Method::PUT, path, body).await?;
        }
        let version = version_of(&options.binary);
        let mut machine = Self {
            options,
            version,
            process: Some(process),
            monitor: None,
            generation: 1,
        };
        machine.ready().await?;
        let main = ExecSpec {
            argv: counter::command(),
            ..ExecSpec::default()
        };
        let launch = Request::Launch {
            main,
            mounts: Vec::new(),
            files: Vec::new(),
            hostname: "peer".to_owned(),
        };
        machine.call(launch, "start the counter").await?;
        machine.open_missing_monitor().await?;
        machine.wait_for_counter().await?;
        Ok(machine)
    }

    fn socket(&self) -> PathBuf {
        self.options.folder.join("v.sock")
    }

    async fn call(&self, request: Request, what: &'static str) -> Result<Reply, FirecrackerError> {
        guest::call(&self.socket(), self.generation, request, CALL_DEADLINE)
            .await
            .map_err(|source| FirecrackerError::Guest { what, source })
    }

    /// Reads the status. If the monitor comes first, opens it before; its attempts count, too, since
    /// the check waits for it.
    async fn ready(&mut self) -> Result<Vec<Attempt>, FirecrackerError> {
        let mut attempts = Vec::new();
        if self.options.monitor_first {
            self.open_monitor(&mut attempts).await?;
        }
        let (socket, generation) = (self.socket(), self.generation);
        let ask = || guest::status(&socket, generation, LIMITS.attempt);
        retry(&LIMITS, "status", &mut attempts, ask).await?;
        Ok(attempts)
    }

    /// Opens the long-lived connection. The old one is closed only now, as a platform would do it.
    async fn open_monitor(&mut self, attempts: &mut Vec<Attempt>) -> Result<(), FirecrackerError> {
        let (socket, generation) = (self.socket(), self.generation);
        let open = || guest::monitor(&socket, generation, LIMITS.attempt);
        self.monitor = Some(retry(&LIMITS, "monitor", attempts, open).await?);
        Ok(())
    }

    /// Opens the monitor if the check did not. It is not part of any measurement.
    async fn open_missing_monitor(&mut self) -> Result<(), FirecrackerError> {
        if self.options.monitor_first {
            return Ok(());
        }
        self.open_monitor(&mut Vec::new()).await
    }

    /// Waits until the guest has a count.
    async fn wait_for_counter(&self) -> Result<(), FirecrackerError> {
        let deadline = Instant::now() + CALL_DEADLINE;
        while self.count().await?.is_none() && Instant::now() < deadline {
            tokio::time::sleep(POLL_PAUSE).await;
        }
        Ok(())
    }

    /// Reads the guest's counter.
    async fn count(&self) -> Result<Option<u64>, FirecrackerError> {
        let failed = |source| FirecrackerError::Guest {
            what: "read the counter",
            source,
        };
        let mut connection = guest::connect(&self.socket(), CALL_DEADLINE)
            .await
            .map_err(failed)?;
        let request = Request::ReadFile {
            path: counter::FILE.to_owned(),
        };
        connection
            .send(self.generation, request)
            .await
            .map_err(failed)?;
        match connection.reply().await.map_err(failed)? {
            Reply::Streaming => {}
            _ => return Ok(None),
        }
        let mut text = Vec::new();
        loop {
            let more = connection
                .next_frame(|frame| match frame {
                    Frame::Data(bytes) if !bytes.is_empty() => {
                        text.extend_from_slice(bytes);
                        true
                    }
                    Frame::Data(_) => false,
                    _ => true,
                })
                .await
                .map_err(failed)?;
            if !more {
                return Ok(counter::parse(&text));
            }
        }
    }

    async fn observation(
        &self,
        status: &GuestStatus,
    ) -> Result<GuestObservation, FirecrackerError> {
        Ok(GuestObservation {
            boot_id: Some(status.boot_id.clone()),
            counter: self.count().await?,
            open_vsocks: Some(status.open_vsocks.total),
        })
    }

    /// Reads the status outside of any measurement, when all connections are open again.
    async fn observe_now(&self) -> Result<GuestObservation, FirecrackerError> {
        match self.call(Request::Status, "ask for the status").await? {
            Reply::Status(status) => self.observation(&status).await,
            _ => Ok(GuestObservation::default()),
        }
    }
}

impl Subject for Firecracker {
    type Error = FirecrackerError;

    fn describe(&self) -> SubjectDescription {
        let order = if self.options.monitor_first {
            "monitor first"
        } else {
            "status check first"
        };
        let order = ("reconnection".to_owned(), order.to_owned());
        SubjectDescription {
            name: self.version.clone(),
            memory_mib: Some(u64::from(self.options.memory_mib)),
            vcpus: Some(self.options.vcpus),
            port_policy: None,
            eviction: Some(false),
            details: BTreeMap::from([order]),
        }
    }

    async fn observe(&mut self) -> Result<GuestObservation, Self::Error> {
        self.observe_now().await
    }

    async fn suspend(&mut self) -> Result<SuspendOutcome, Self::Error> {
        let what = "suspend";
        let process = self
            .process
            .take()
            .ok_or(FirecrackerError::NotRunning { what })?;
        let start = Instant::now();
        let pause = json!({ "state": "Paused" });
        api::call(&process.api, Method::PATCH, "/vm", &pause).await?;
        let paused_ms = ms_since(start);
        let create = json!({
            "snapshot_type": "Full",
            "snapshot_path": self.options.folder.join("state"),
            "mem_file_path": self.options.folder.join("memory"),
        });
        api::call(&process.api, Method::PUT, "/snapshot/create", &create).await?;
        let created_ms = ms_since(start);
        process.end()?;
        let total_ms = ms_since(start);
        let named = [
            ("pause".to_owned(), paused_ms),
            ("create_snapshot".to_owned(), created_ms - paused_ms),
            ("vmm_exit".to_owned(), total_ms - created_ms),
        ];
        let length = |name: &str| {
            std::fs::metadata(self.options.folder.join(name)).map_or(0, |file| file.len())
        };
        Ok(SuspendOutcome {
            total_ms,
            phases: Phases::with_remainder(named, total_ms),
            image_bytes_written: Some(length("state") + length("memory")),
        })
    }

    async fn resume(&mut self) -> Result<ResumeOutcome, Self::Error> {
        let start = Instant::now();
        let process = Process::start(&self.options.binary, &self.options.folder).await?;
        let spawned_ms = ms_since(start);
        let load = json!({
            "snapshot_path": self.options.folder.join("state"),
            "mem_backend": {
                "backend_path": self.options.folder.join("memory"),
                "backend_type": "File",
            },
            "resume_vm": true,
        });
        api::call(&process.api, Method::PUT, "/snapshot/load", &load).await?;
        let loaded_ms = ms_since(start);
        self.process = Some(process);
        self.generation += 1;
        let readiness = self.ready().await?;
        let total_ms = ms_since(start);
        let named = [
            ("spawn".to_owned(), spawned_ms),
            ("load_snapshot".to_owned(), loaded_ms - spawned_ms),
            ("readiness".to_owned(), total_ms - loaded_ms),
        ];
        self.open_missing_monitor().await?;
        let guest = self.observe_now().await?;
        Ok(ResumeOutcome {
            total_ms,
            phases: Phases::with_remainder(named, total_ms),
            readiness,
            guest,
        })
    }
}

fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// First line of `--version`, such as `Firecracker v1.15.0`.
fn version_of(binary: &std::path::Path) -> String {
    std::process::Command::new(binary)
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().next().map(str::to_owned)
        })
        .filter(|line| !line.is_empty())
        .unwrap_or_else(|| "Firecracker".to_owned())
}
