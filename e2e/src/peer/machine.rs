//! A machine in a peer, as a subject of cycles.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cycles::{
    Attempt, GuestObservation, Phases, ResumeOutcome, Subject, SubjectDescription, SuspendOutcome,
};
use guest_protocol::{ExecSpec, Frame, GuestStatus, Reply, Request};

use super::api::{self, ApiError};
use super::driver::{Guest, PhaseCall};
use super::guest::{self, CallError, Connection};
use super::kind::PeerKind;
use super::process::{Process, ProcessError};
use super::readiness::{LIMITS, NotReady, retry};
use crate::counter;

/// Deadline of other calls to init.
const CALL_DEADLINE: Duration = Duration::from_secs(20);
/// Pause between two reads of the counter.
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// What to boot, and how.
#[derive(Debug, Clone)]
pub struct PeerOptions {
    /// Which VMM.
    pub kind: PeerKind,
    /// The user's binary of it.
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
pub enum PeerError {
    /// A folder of its files cannot be created or removed.
    #[error("cannot {what} {}", path.display())]
    Folder {
        /// What was attempted.
        what: &'static str,
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
    /// A step failed while a process was there that can say more.
    #[error("{report}")]
    Reported {
        /// Whether the process had ended, and the end of its output.
        report: String,
        /// The step's error.
        source: Box<PeerError>,
    },
}

/// A machine in a peer.
#[derive(Debug)]
pub struct PeerMachine {
    options: PeerOptions,
    version: String,
    process: Option<Process>,
    monitor: Option<Connection>,
    generation: u64,
}

impl PeerMachine {
    /// Boots it and starts the counter in the guest.
    ///
    /// # Errors
    /// [`PeerError`] of the step that failed.
    pub async fn boot(options: PeerOptions) -> Result<Self, PeerError> {
        create_folder(&options.folder)?;
        let version = version_of(&options.binary, options.kind);
        let mut machine = Self {
            options,
            version,
            process: None,
            monitor: None,
            generation: 1,
        };
        let booted = machine.boot_and_launch().await;
        booted.map_err(|error| machine.reported(error))?;
        Ok(machine)
    }

    async fn boot_and_launch(&mut self) -> Result<(), PeerError> {
        self.start_process().await?;
        let guest = Guest {
            kernel: self.options.kernel.clone(),
            initramfs: self.options.initramfs.clone(),
            memory_mib: self.options.memory_mib,
            vcpus: self.options.vcpus,
            vsock: self.socket(),
        };
        for call in self.options.kind.driver().boot(&guest) {
            api::call(self.api("boot")?, &call).await?;
        }
        let mut attempts = Vec::new();
        if self.options.monitor_first {
            self.open_monitor(&mut attempts).await?;
        }
        self.check_status(&mut attempts).await?;
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
        self.call(launch, "start the counter").await?;
        if !self.options.monitor_first {
            self.open_monitor(&mut attempts).await?;
        }
        self.wait_for_counter().await
    }

    async fn start_process(&mut self) -> Result<(), PeerError> {
        // The new process binds it.
        let _ = std::fs::remove_file(self.socket());
        let folder = &self.options.folder;
        let api = folder.join("api.sock");
        let arguments = self.options.kind.driver().arguments(&api);
        let log = folder.join("vmm.log");
        let process = Process::start(&self.options.binary, &arguments, &api, &log).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Adds to `error` what can be seen of the process.
    fn reported(&mut self, error: PeerError) -> PeerError {
        match &mut self.process {
            Some(process) => PeerError::Reported {
                report: process.report(),
                source: Box::new(error),
            },
            None => error,
        }
    }

    /// The Unix socket of the guest's vsock device.
    fn socket(&self) -> PathBuf {
        self.options.folder.join("v.sock")
    }

    /// The API socket.
    fn api(&self, what: &'static str) -> Result<&Path, PeerError> {
        let process = self.process.as_ref();
        process
            .map(|process| process.api.as_path())
            .ok_or(PeerError::NotRunning { what })
    }

    /// The folder of the snapshot that `generation` ends with. Each has one of its own: that of the
    /// generation before may still be in use by the VMM that was restored from it.
    fn snapshot(&self, generation: u64) -> PathBuf {
        let name = format!("snapshot-{generation}");
        self.options.folder.join(name)
    }

    /// Makes API calls, and adds the phase of each.
    async fn make_calls(
        &self,
        what: &'static str,
        calls: Vec<PhaseCall>,
        stopwatch: &mut Stopwatch,
    ) -> Result<(), PeerError> {
        let api = self.api(what)?;
        for PhaseCall { phase, call } in calls {
            api::call(api, &call).await?;
            stopwatch.end_phase(phase);
        }
        Ok(())
    }

    async fn call(&self, request: Request, what: &'static str) -> Result<Reply, PeerError> {
        guest::call(&self.socket(), self.generation, request, CALL_DEADLINE)
            .await
            .map_err(|source| PeerError::Guest { what, source })
    }

    /// The readiness check.
    async fn check_status(&self, attempts: &mut Vec<Attempt>) -> Result<(), PeerError> {
        let (socket, generation) = (self.socket(), self.generation);
        let ask = || guest::status(&socket, generation, LIMITS.attempt);
        retry(&LIMITS, "status", attempts, ask).await?;
        Ok(())
    }

    /// Opens the long-lived connection. The old one is closed only now, as a platform would do it.
    async fn open_monitor(&mut self, attempts: &mut Vec<Attempt>) -> Result<(), PeerError> {
        let (socket, generation) = (self.socket(), self.generation);
        let open = || guest::monitor(&socket, generation, LIMITS.attempt);
        self.monitor = Some(retry(&LIMITS, "monitor", attempts, open).await?);
        Ok(())
    }

    async fn suspend_in_phases(&mut self) -> Result<SuspendOutcome, PeerError> {
        let folder = self.snapshot(self.generation);
        create_folder(&folder)?;
        let mut stopwatch = Stopwatch::start();
        let calls = self.options.kind.driver().suspend(&folder);
        self.make_calls("suspend", calls, &mut stopwatch).await?;
        if let Some(process) = self.process.take() {
            process.end()?;
        }
        stopwatch.end_phase("vmm_exit");
        let (total_ms, phases) = stopwatch.stop();
        // Earlier, the end of the process that has it mapped would have to free it.
        remove_folder(&self.snapshot(self.generation - 1))?;
        Ok(SuspendOutcome {
            total_ms,
            phases,
            image_bytes_written: Some(size_of(&folder)),
        })
    }

    /// Like the supervisor, waits for the monitor as long as it takes if it comes first; if it comes
    /// last, a started machine does not depend on it, and one attempt belongs to the resume.
    async fn resume_in_phases(&mut self) -> Result<ResumeOutcome, PeerError> {
        let folder = self.snapshot(self.generation);
        let mut stopwatch = Stopwatch::start();
        self.start_process().await?;
        stopwatch.end_phase("spawn");
        let calls = self.options.kind.driver().resume(&folder);
        self.make_calls("resume", calls, &mut stopwatch).await?;
        self.generation += 1;
        let mut readiness = Vec::new();
        let mut is_monitored = self.options.monitor_first;
        if self.options.monitor_first {
            self.open_monitor(&mut readiness).await?;
            stopwatch.end_phase("monitor_reopened");
        }
        self.check_status(&mut readiness).await?;
        stopwatch.end_phase("readiness");
        if !is_monitored {
            let socket = self.socket();
            let opened = guest::monitor(&socket, self.generation, LIMITS.attempt).await;
            if let (_, Ok(monitor)) = opened {
                self.monitor = Some(monitor);
                is_monitored = true;
            }
            stopwatch.end_phase("monitor_reopened");
        }
        let (total_ms, phases) = stopwatch.stop();
        if !is_monitored {
            self.open_monitor(&mut Vec::new()).await?;
        }
        let guest = self.observe_now().await?;
        Ok(ResumeOutcome {
            total_ms,
            phases,
            readiness,
            guest,
        })
    }

    /// Waits until the guest has a count.
    async fn wait_for_counter(&self) -> Result<(), PeerError> {
        let deadline = Instant::now() + CALL_DEADLINE;
        while self.count().await?.is_none() && Instant::now() < deadline {
            tokio::time::sleep(POLL_PAUSE).await;
        }
        Ok(())
    }

    /// Reads the guest's counter.
    async fn count(&self) -> Result<Option<u64>, PeerError> {
        let failed = |source| PeerError::Guest {
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

    async fn observation(&self, status: &GuestStatus) -> Result<GuestObservation, PeerError> {
        Ok(GuestObservation {
            boot_id: Some(status.boot_id.clone()),
            counter: self.count().await?,
            open_vsocks: Some(status.open_vsocks.total),
        })
    }

    /// Reads the status outside of any measurement, when all connections are open again.
    async fn observe_now(&self) -> Result<GuestObservation, PeerError> {
        match self.call(Request::Status, "ask for the status").await? {
            Reply::Status(status) => self.observation(&status).await,
            _ => Ok(GuestObservation::default()),
        }
    }
}

impl Subject for PeerMachine {
    type Error = PeerError;

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
            eviction: None,
            details: BTreeMap::from([order]),
        }
    }

    async fn observe(&mut self) -> Result<GuestObservation, Self::Error> {
        let observed = self.observe_now().await;
        observed.map_err(|error| self.reported(error))
    }

    async fn suspend(&mut self) -> Result<SuspendOutcome, Self::Error> {
        let suspended = self.suspend_in_phases().await;
        suspended.map_err(|error| self.reported(error))
    }

    async fn resume(&mut self) -> Result<ResumeOutcome, Self::Error> {
        let resumed = self.resume_in_phases().await;
        resumed.map_err(|error| self.reported(error))
    }
}

/// Measures a sequence of phases without gaps.
#[derive(Debug)]
struct Stopwatch {
    start: Instant,
    phase_start: Instant,
    phases: Vec<(String, f64)>,
}

impl Stopwatch {
    fn start() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            phase_start: now,
            phases: Vec::new(),
        }
    }

    /// The time since the last phase's end was `phase`.
    fn end_phase(&mut self, phase: &str) {
        let now = Instant::now();
        let ms = (now - self.phase_start).as_secs_f64() * 1e3;
        self.phases.push((phase.to_owned(), ms));
        self.phase_start = now;
    }

    /// The total, until the last phase's end, and the phases.
    fn stop(self) -> (f64, Phases) {
        let total_ms = (self.phase_start - self.start).as_secs_f64() * 1e3;
        (total_ms, Phases::with_remainder(self.phases, total_ms))
    }
}

fn create_folder(path: &Path) -> Result<(), PeerError> {
    std::fs::create_dir_all(path).map_err(|source| PeerError::Folder {
        what: "create",
        path: path.to_owned(),
        source,
    })
}

/// Removes a folder with its files, if there is one.
fn remove_folder(path: &Path) -> Result<(), PeerError> {
    match std::fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(PeerError::Folder {
            what: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// The bytes of the files in `folder`.
fn size_of(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter_map(|file| file.metadata().ok())
        .map(|file| file.len())
        .sum()
}

/// First line of `--version`, such as `Firecracker v1.15.0`; the kind's name if there is none.
fn version_of(binary: &Path, kind: PeerKind) -> String {
    std::process::Command::new(binary)
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().next().map(str::to_owned)
        })
        .filter(|line| !line.is_empty())
        .unwrap_or_else(|| kind.name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_of_a_stopwatch_leave_nothing_out() {
        let mut stopwatch = Stopwatch::start();
        for phase in ["spawn", "load_snapshot", "readiness"] {
            std::thread::sleep(Duration::from_millis(1));
            stopwatch.end_phase(phase);
        }
        let (total_ms, phases) = stopwatch.stop();
        let sum_ms: f64 = phases.iter().map(|(_, ms)| ms).sum();
        assert!(total_ms >= 3.0, "{total_ms}");
        assert!((total_ms - sum_ms).abs() < 1e-6, "{total_ms} {sum_ms}");
        assert!(phases.ms("load_snapshot") >= Some(1.0), "{phases:?}");
    }

    #[test]
    fn a_snapshot_that_was_never_made_need_not_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("snapshot-1");
        remove_folder(&snapshot).unwrap();
        create_folder(&snapshot).unwrap();
        std::fs::write(snapshot.join("memory"), "12345").unwrap();
        assert_eq!(size_of(&snapshot), 5);
        remove_folder(&snapshot).unwrap();
        assert!(!snapshot.exists());
    }

    #[tokio::test]
    async fn a_binary_that_is_no_vmm_cannot_be_booted_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let error = PeerMachine::boot(PeerOptions {
            kind: PeerKind::CloudHypervisor,
            binary: "/bin/false".into(),
            kernel: "kernel".into(),
            initramfs: "initramfs".into(),
            folder: folder.path().join("peer"),
            memory_mib: 64,
            vcpus: 1,
            monitor_first: false,
        })
        .await
        .unwrap_err();
        let PeerError::Process(cause) = error else {
            panic!("{error:?}");
        };
        let text = cause.to_string();
        assert!(text.contains("/bin/false opened no API socket"), "{text}");
        assert!(text.contains("exit status: 1"), "{text}");
    }
}
