//! One process of a peer: started with a fresh API socket, killed when dropped.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use crate::child;

/// How long a process may take to open its API socket.
const API_DEADLINE: Duration = Duration::from_secs(20);
/// Pause between two attempts to connect to it. It is part of what is measured, so it is short.
const API_PAUSE: Duration = Duration::from_micros(100);
/// How long the end of a process that has closed its sockets is waited for.
const END_DEADLINE: Duration = Duration::from_millis(500);
/// Lines of its output that an error shows.
const LOG_LINES: usize = 10;

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
    #[error("cannot write the VMM's log {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It ended, or did not open its API socket in time.
    #[error(
        "{} opened no API socket at {} within {} s; {report}",
        binary.display(), socket.display(), API_DEADLINE.as_secs()
    )]
    NoApi {
        /// Its path, as given.
        binary: PathBuf,
        /// The socket.
        socket: PathBuf,
        /// What became of it.
        report: String,
    },
    /// It could not be killed.
    #[error("cannot end the VMM's process")]
    Kill(#[source] std::io::Error),
}

/// A running VMM.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    log: PathBuf,
    /// Its API socket.
    pub(super) api: PathBuf,
}

impl Process {
    /// Starts `binary` and waits until its socket `api` can be connected to. Its output is appended
    /// to `log`.
    pub(super) async fn start(
        binary: &Path,
        arguments: &[OsString],
        api: &Path,
        log: &Path,
    ) -> Result<Self, ProcessError> {
        // A socket of an earlier process could be mistaken for this one's.
        let _ = std::fs::remove_file(api);
        let cannot_log = |source| ProcessError::Log {
            path: log.to_owned(),
            source,
        };
        let output = File::options().create(true).append(true).open(log);
        let output = output.map_err(cannot_log)?;
        let errors = output.try_clone().map_err(cannot_log)?;
        let child = Command::new(binary)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|source| ProcessError::Spawn {
                binary: binary.to_owned(),
                source,
            })?;
        let mut process = Self {
            child,
            log: log.to_owned(),
            api: api.to_owned(),
        };
        let deadline = Instant::now() + API_DEADLINE;
        while UnixStream::connect(api).await.is_err() {
            let ended = matches!(process.child.try_wait(), Ok(Some(_)));
            if ended || Instant::now() >= deadline {
                return Err(ProcessError::NoApi {
                    binary: binary.to_owned(),
                    socket: api.to_owned(),
                    report: process.report(),
                });
            }
            // Timers of the runtime count milliseconds.
            let pause = tokio::task::spawn_blocking(|| std::thread::sleep(API_PAUSE));
            // A sleep does not panic; without it the loop would only be busier.
            let _ = pause.await;
        }
        Ok(process)
    }

    /// Whether it has ended, and the last lines of its output.
    pub(super) fn report(&mut self) -> String {
        let ended = child::wait(&mut self.child, END_DEADLINE).ok().flatten();
        report(ended, &std::fs::read(&self.log).unwrap_or_default())
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

fn report(ended: Option<ExitStatus>, log: &[u8]) -> String {
    let log = String::from_utf8_lossy(log);
    let lines: Vec<&str> = log.lines().collect();
    let last = lines[lines.len().saturating_sub(LOG_LINES)..].join(" | ");
    let state = match ended {
        Some(status) => format!("the VMM ended with {status}"),
        None => "the VMM still ran".to_owned(),
    };
    if last.is_empty() {
        format!("{state}, without any output")
    } else {
        format!("{state}, and its output ends with: {last}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_binary_that_ends_at_once_is_reported_with_its_status_and_output() {
        let folder = tempfile::tempdir().unwrap();
        let (api, log) = (folder.path().join("api.sock"), folder.path().join("log"));
        let arguments = ["-c".into(), "echo no KVM here >&2; exit 3".into()];
        let started = Process::start(Path::new("/bin/sh"), &arguments, &api, &log).await;
        let text = started.unwrap_err().to_string();
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.contains("no KVM here"), "{text}");
    }

    #[test]
    fn a_report_has_the_last_lines_only() {
        let lines: Vec<String> = (0..50).map(|number| format!("line {number}")).collect();
        let text = report(None, lines.join("\n").as_bytes());
        assert!(text.starts_with("the VMM still ran"), "{text}");
        assert!(text.ends_with("line 48 | line 49"), "{text}");
        assert!(!text.contains("line 39"), "{text}");
    }

    #[test]
    fn a_silent_process_is_reported_as_such() {
        assert!(report(None, b"").ends_with("without any output"));
    }
}
