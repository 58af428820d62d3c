//! VMM processes: launch, adopt, watch, kill; the only place with pids.
//!
//! A VMM outlives the supervisor that launched it. It gets its control socket, which listens already,
//! as standard input, so that a later supervisor can connect by path. It leaves an exit report in a
//! file, since only the parent of a process gets its exit status.

mod control;
mod identity;
mod program;
mod usage;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use vmm_control::{ExitReason, ExitReport};

use crate::exhaustion;
use crate::model::process_identity::ProcessIdentity;
use crate::paths::MachineDir;
pub(crate) use control::{Control, ControlError};
pub(crate) use program::VmmProgram;
pub(crate) use usage::VmmUsage;

/// Size at which the log of the VMMs is rotated before a launch; one older file is kept.
const LOG_BYTES: u64 = 1 << 20;

/// How a VMM is launched.
#[derive(Debug, Clone)]
pub(crate) struct LaunchSpec {
    /// The binary.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// The machine.
    pub(crate) machine_id: String,
    /// The machine's generation.
    pub(crate) generation: u64,
    /// The machine's directory.
    pub(crate) dir: MachineDir,
}

/// A VMM could not be launched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// A file or socket that it needs cannot be created.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// No process can be created.
    #[error("cannot run {} ({hint})", program.display())]
    NoProcess {
        /// The program.
        program: PathBuf,
        /// What is used up, and what to do.
        hint: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// Too few descriptors are left for a whole start.
    #[error("cannot run {}", program.display())]
    Descriptors {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The program cannot be run.
    #[error("cannot run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// How a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmmExit {
    /// Exit code; none if a signal killed it or it was not our child.
    pub(crate) code: Option<i32>,
    /// Signal that killed it.
    pub(crate) signal: Option<i32>,
    /// The report that it wrote when it ended.
    pub(crate) report: Option<ExitReport>,
}

impl VmmExit {
    /// An end that nobody saw, with no report.
    pub(crate) fn unseen() -> Self {
        Self {
            code: None,
            signal: None,
            report: None,
        }
    }

    /// Why it ended, if it left a report.
    pub(crate) fn reason(&self) -> Option<ExitReason> {
        self.report.as_ref().map(|report| report.reason)
    }

    /// The guest has powered itself off.
    pub(crate) fn is_power_off(&self) -> bool {
        self.reason() == Some(ExitReason::GuestPowerOff)
    }

    /// One sentence for events.
    pub(crate) fn in_words(&self) -> String {
        match (&self.report, self.signal, self.code) {
            (Some(report), _, _) => report.message.clone(),
            (None, Some(signal), _) => format!("the VMM was killed by signal {signal}"),
            (None, None, Some(code)) => format!("the VMM exited with code {code} and no report"),
            (None, None, None) => "the VMM has ended and left no report".to_owned(),
        }
    }
}

/// A VMM process, which may have ended since.
#[derive(Debug, Clone)]
pub(crate) struct VmmProcess {
    identity: ProcessIdentity,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<VmmExit>>,
}

impl VmmProcess {
    /// Launches a VMM. Returns as soon as the process exists.
    pub(crate) fn spawn(spec: &LaunchSpec) -> Result<Self, SpawnError> {
        exhaustion::check_descriptors_for_start().map_err(|source| SpawnError::Descriptors {
            program: spec.program.clone(),
            source,
        })?;
        let listener = prepare(&spec.dir)?;
        let log = spec.dir.vmm_log();
        rotate_if_large(&log, &spec.dir.older_vmm_log())
            .map_err(|source| prepare_error(&log, source))?;
        let output = append_to(&log).map_err(|source| prepare_error(&log, source))?;
        let error = output
            .try_clone()
            .map_err(|source| prepare_error(&log, source))?;
        let run = |source| {
            let program = spec.program.clone();
            match exhaustion::spawn_hint(&source).filter(|_| exhaustion::hint(&source).is_none()) {
                Some(hint) => SpawnError::NoProcess {
                    program,
                    hint,
                    source,
                },
                None => SpawnError::Run { program, source },
            }
        };
        let mut child = Command::new(&spec.program)
            .args(&spec.arguments)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(output)
            .stderr(error)
            // In a process group of its own, so that a Ctrl-C at the supervisor's terminal does not end it.
            .process_group(0)
            .spawn()
            .map_err(run)?;
        let opened = i32::try_from(child.id())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
            .and_then(ProcessIdentity::open_pid)
            .and_then(|(identity, pidfd)| Ok((identity, watchable(pidfd)?)));
        match opened {
            Ok((identity, pidfd)) => Ok(Self::watch(spec, identity, pidfd, Some(child))),
            Err(source) => {
                // Without a descriptor it cannot be watched, so it must not run.
                let _ = child.kill();
                let _ = child.wait();
                Err(run(source))
            }
        }
    }

    /// Takes over a VMM that another supervisor launched; none if that very process has ended. After
    /// an error its state is unknown, and it must not be taken for ended.
    pub(crate) fn adopt(
        identity: &ProcessIdentity,
        machine_id: &str,
        generation: u64,
        dir: &MachineDir,
    ) -> io::Result<Option<Self>> {
        let Some(pidfd) = identity.open()? else {
            return Ok(None);
        };
        let spec = LaunchSpec {
            program: PathBuf::new(),
            arguments: Vec::new(),
            machine_id: machine_id.to_owned(),
            generation,
            dir: dir.clone(),
        };
        let pidfd = watchable(pidfd)?;
        Ok(Some(Self::watch(&spec, identity.clone(), pidfd, None)))
    }

    fn watch(
        spec: &LaunchSpec,
        identity: ProcessIdentity,
        readable: AsyncFd<Arc<OwnedFd>>,
        child: Option<Child>,
    ) -> Self {
        let pidfd = readable.get_ref().clone();
        let (sender, exit) = watch::channel(None);
        let (machine_id, generation) = (spec.machine_id.clone(), spec.generation);
        let report_path = spec.dir.exit_report();
        tokio::spawn(async move {
            // A pidfd becomes readable when its process ends, and stays so.
            if let Err(error) = readable.readable().await {
                tracing::error!(%error, machine_id, "cannot watch the VMM");
            }
            let status = child.and_then(|mut child| child.wait().ok());
            let report = read_exit_report(&report_path, &machine_id, generation);
            let _ = sender.send(Some(VmmExit {
                code: status.and_then(|status: ExitStatus| status.code()),
                signal: status.and_then(|status| status.signal()),
                report,
            }));
        });
        Self {
            identity,
            pidfd,
            exit,
        }
    }

    /// Which process it is.
    pub(crate) fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// Waits for its end, which may have happened long ago.
    pub(crate) async fn exited(&self) -> VmmExit {
        let mut exit = self.exit.clone();
        match exit
            .wait_for(Option::is_some)
            .await
            .map(|seen| seen.clone())
        {
            Ok(Some(exit)) => exit,
            // The watching task ends only with the runtime.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Kills it; [`Self::exited`] resolves when it has ended.
    pub(crate) fn kill(&self) {
        // Fails only if it has ended already.
        let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
    }
}

fn watchable(pidfd: OwnedFd) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    #[expect(
        deprecated,
        reason = "an OwnedFd in an Arc is and stays the same descriptor"
    )]
    AsyncFd::new(Arc::new(pidfd))
}

/// Removes what an earlier VMM has left, and binds the control socket.
fn prepare(dir: &MachineDir) -> Result<UnixListener, SpawnError> {
    for path in [dir.control_socket(), dir.vsock_socket(), dir.exit_report()] {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(prepare_error(&path, source));
            }
            _ => {}
        }
    }
    let path = dir.control_socket();
    UnixListener::bind(&path).map_err(|source| prepare_error(&path, source))
}

fn prepare_error(path: &Path, source: io::Error) -> SpawnError {
    SpawnError::Prepare {
        path: path.to_owned(),
        source,
    }
}

/// Each VMM adds a few lines, and a machine may have thousands of them.
fn rotate_if_large(log: &Path, older: &Path) -> io::Result<()> {
    match fs::metadata(log) {
        Ok(file) if file.len() >= LOG_BYTES => fs::rename(log, older),
        _ => Ok(()),
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Most bytes of an exit report: it says what a guest has done.
const REPORT_BYTES: u64 = 64 << 10;

/// The exit report of that machine and generation, if there is one.
pub(crate) fn read_exit_report(
    path: &Path,
    machine_id: &str,
    generation: u64,
) -> Option<ExitReport> {
    let mut text = Vec::new();
    let file = File::open(path).ok()?;
    file.take(REPORT_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice::<ExitReport>(&text)
        .ok()
        .filter(|report| report.machine_id == machine_id && report.generation == generation)
}

/// Removes the sockets of a VMM that has ended.
pub(crate) fn remove_sockets(dir: &MachineDir) {
    for path in [dir.control_socket(), dir.vsock_socket()] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(%error, path = %path.display(), "cannot remove a socket");
            }
            _ => {}
        }
    }
}

/// All processes of the host whose command line names an exit report: VMMs, whoever launched them.
/// They are needed after a supervisor died between a launch and storing it.
#[derive(Debug)]
pub(crate) struct CommandLines {
    by_report: HashMap<PathBuf, Vec<i32>>,
}

/// What the command line of a VMM says.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    /// Its exit report.
    report: PathBuf,
    /// The generation of its launch.
    generation: u64,
}

impl CommandLines {
    /// Reads them once. An error means that one may have been missed.
    pub(crate) fn read() -> io::Result<Self> {
        let mut by_report: HashMap<PathBuf, Vec<i32>> = HashMap::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if let Some(named) = named_in_command_line(pid)? {
                by_report.entry(named.report).or_default().push(pid);
            }
        }
        Ok(Self { by_report })
    }

    /// The folders of machines directly below `machines` that they name.
    pub(crate) fn folders_in(&self, machines: &Path) -> Vec<PathBuf> {
        let folders = self.by_report.keys().filter_map(|report| report.parent());
        let below = folders.filter(|folder| folder.parent() == Some(machines));
        below.map(Path::to_owned).collect()
    }

    /// Those of one machine that still run, with the generation of their launch.
    pub(crate) fn of(&self, dir: &MachineDir) -> io::Result<Vec<(ProcessIdentity, u64)>> {
        let report = dir.exit_report();
        let mut found = Vec::new();
        for pid in self.by_report.get(&report).into_iter().flatten() {
            let opened = match ProcessIdentity::open_pid(*pid) {
                Err(error) if identity::is_gone(&error) => continue,
                opened => opened?,
            };
            // Its pid may belong to another process by now.
            if let Some(named) = named_in_command_line(*pid)?
                && named.report == report
            {
                found.push((opened.0, named.generation));
            }
        }
        Ok(found)
    }
}

/// What a process's command line names, if it is a VMM's.
fn named_in_command_line(pid: i32) -> io::Result<Option<Named>> {
    let line = match fs::read(format!("/proc/{pid}/cmdline")) {
        // It has ended meanwhile, or belongs to another user and is hidden.
        Err(error)
            if identity::is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied =>
        {
            return Ok(None);
        }
        line => line?,
    };
    Ok(named(&line))
}

fn named(line: &[u8]) -> Option<Named> {
    let value = |flag: &[u8]| {
        let mut words = line.split(|byte| *byte == 0);
        words.find(|word| *word == flag)?;
        words.next()
    };
    let report = value(b"--exit-file")?;
    let generation = std::str::from_utf8(value(b"--generation")?).ok()?;
    Some(Named {
        report: PathBuf::from(OsStr::from_bytes(report)),
        generation: generation.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_is_known_by_its_command_line() {
        let line = b"mctl-vmm\0restore\0--generation\x007\0--exit-file\0/s/machines/a/exit.json\0";
        let expected = Named {
            report: PathBuf::from("/s/machines/a/exit.json"),
            generation: 7,
        };
        assert_eq!(named(line), Some(expected));
        for other in [
            &b"cat\0--exit-file\0/x\0"[..],
            b"cat\0--exit-file",
            b"x\0--generation\0-1\0--exit-file\0/x\0",
            b"",
        ] {
            assert_eq!(named(other), None);
        }
        let lines = CommandLines {
            by_report: [
                ("/s/machines/a/exit.json".into(), vec![1]),
                ("/other/a/exit.json".into(), vec![2]),
            ]
            .into(),
        };
        let folders = lines.folders_in(Path::new("/s/machines"));
        assert_eq!(folders, [PathBuf::from("/s/machines/a")]);
    }

    #[test]
    fn an_exit_report_of_any_length_is_read_up_to_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("exit.json");
        let read = |message: &str| {
            let report = ExitReport {
                machine_id: "a".to_owned(),
                generation: 3,
                reason: ExitReason::GuestPowerOff,
                message: message.to_owned(),
            };
            fs::write(&path, serde_json::to_vec(&report).unwrap()).unwrap();
            read_exit_report(&path, "a", 3).map(|report| report.message)
        };
        assert_eq!(
            read("the guest powered off").as_deref(),
            Some("the guest powered off")
        );
        assert_eq!(read(&"x".repeat(1 << 20)), None);
    }

    #[test]
    fn the_log_of_the_vmms_is_rotated_once_it_is_large_and_one_older_file_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (log, older) = (folder.path().join("log"), folder.path().join("log.1"));
        rotate_if_large(&log, &older).unwrap();
        fs::write(&log, "small").unwrap();
        rotate_if_large(&log, &older).unwrap();
        assert!(log.exists() && !older.exists());
        for round in 1..3_u8 {
            fs::write(&log, vec![round; 1 << 20]).unwrap();
            rotate_if_large(&log, &older).unwrap();
            assert!(!log.exists());
            assert_eq!(fs::read(&older).unwrap()[0], round);
        }
    }
}
