//! One Firecracker process: started with a fresh API socket, killed when dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

/// How long a process may take to open its API socket.
const API_DEADLINE: Duration = Duration::from_secs(20);

/// Why a process could not be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The binary cannot be run.
    #[error("cannot start {}", binary.display())]
    Spawn {
        /// Its path, as given.
        binary: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Its log cannot be written.
    #[error("cannot write firecracker's log {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It did not open its API socket in time.
    #[error(
        "firecracker opened no API socket at {} within {} s; see {}",
        socket.display(), API_DEADLINE.as_secs(), log.display()
    )]
    NoApi {
        /// The socket.
        socket: PathBuf,
        /// Its output.
        log: PathBuf,
    },
    /// It could not be killed.
    #[error("cannot end the firecracker process")]
    Kill(#[source] std::io::Error),
}

/// A running Firecracker.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// Its API socket.
    pub(super) api: PathBuf,
}

impl Process {
    /// Starts `binary` in `folder` and waits until its API can be connected to.
    pub(super) async fn start(binary: &Path, folder: &Path) -> Result<Self, ProcessError> {
        let api = folder.join("api.sock");
        // A socket of an earlier process could be mistaken for this one's.
        let _ = std::fs::remove_file(&api);
        let _ = std::fs::remove_file(folder.join("v.sock"));
        let log = folder.join("firecracker.log");
        let log_file = File::options().create(true).append(true).open(&log);
        let log_file = log_file.map_err(|source| ProcessError::Log {
            path: log.clone(),
            source,
        })?;
        let errors = log_file.try_clone().map_err(|source| ProcessError::Log {
            path: log.clone(),
            source,
        })?;
        let child = Command::new(binary)
            .arg("--api-sock")
            .arg(&api)
            .arg("--no-seccomp")
            .stdin(Stdio::null())
            .stdout(log_file)
            .stderr(errors)
            .spawn()
            .map_err(|source| ProcessError::Spawn {
                binary: binary.to_owned(),
                source,
            })?;
        let process = Self { child, api };
        let deadline = Instant::now() + API_DEADLINE;
        while UnixStream::connect(&process.api).await.is_err() {
            if Instant::now() >= deadline {
                return Err(ProcessError::NoApi {
                    socket: process.api.clone(),
                    log,
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(process)
    }

    /// Kills it and waits until it is gone.
    pub(super) fn end(mut self) -> Result<(), ProcessError> {
        self.child.kill().map_err(ProcessError::Kill)?;
        self.child.wait().map_err(ProcessError::Kill)?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; a process that cannot be killed cannot be helped here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
