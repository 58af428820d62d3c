//! The VMM program: which protocol it speaks, before a machine is entrusted to it.
//!
//! A VMM of a restored machine has consumed its image by the time it greets. So the program is asked
//! once, and again when its file has changed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;
use vmm_control::{OLDEST_VERSION, Protocols, VERSION};

/// How long the program may take to answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Of programs that do not know the question: the release that had none.
const BEFORE_THE_QUESTION: Protocols = Protocols {
    control: 1,
    image: 1,
    announces: Vec::new(),
};

/// The program cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// It is not there, or is no program.
    #[error("cannot run {}", path.display())]
    Run {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It does not end.
    #[error("{} did not tell its protocol within {} s", path.display(), LIMIT.as_secs())]
    Deadline {
        /// The file.
        path: PathBuf,
    },
    /// Its VMMs would not be understood.
    #[error(
        "{} speaks version {found} of the control protocol, and this supervisor {OLDEST_VERSION} to \
         {VERSION}",
        path.display()
    )]
    Protocol {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// Device, inode, size and time of change of a file.
type FileState = (u64, u64, u64, i64, i64);

/// The VMM program.
#[derive(Debug)]
pub(crate) struct VmmProgram {
    path: PathBuf,
    told: Mutex<Option<(FileState, Protocols)>>,
}

impl VmmProgram {
    /// The program at `path`, which is not asked yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            told: Mutex::default(),
        }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that its VMMs will be understood, and returns what else it says of itself.
    pub(crate) async fn check(&self) -> Result<Protocols, ProgramError> {
        let run = |source| ProgramError::Run {
            path: self.path.clone(),
            source,
        };
        let metadata = fs::metadata(&self.path).map_err(run)?;
        let state = (
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        );
        let mut told = self.told.lock().await;
        let protocols = match &*told {
            Some((known, protocols)) if *known == state => protocols.clone(),
            _ => {
                let protocols = self.ask().await?;
                *told = Some((state, protocols.clone()));
                protocols
            }
        };
        if vmm_control::speaks(protocols.control) {
            return Ok(protocols);
        }
        Err(ProgramError::Protocol {
            path: self.path.clone(),
            found: protocols.control,
        })
    }

    async fn ask(&self) -> Result<Protocols, ProgramError> {
        let mut command = Command::new(&self.path);
        command
            .arg("protocols")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(LIMIT, command.output()).await;
        let output = output.map_err(|_| ProgramError::Deadline {
            path: self.path.clone(),
        })?;
        let output = output.map_err(|source| ProgramError::Run {
            path: self.path.clone(),
            source,
        })?;
        Ok(serde_json::from_slice(&output.stdout).unwrap_or(BEFORE_THE_QUESTION))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(folder: &Path, name: &str, body: &str) -> VmmProgram {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        VmmProgram::new(path)
    }

    #[tokio::test]
    async fn a_program_is_asked_before_it_is_used() {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let ours = format!("echo '{{\"control\": {VERSION}, \"image\": 1}}'");
        program(folder.path(), "ours", &ours).check().await.unwrap();
        let before = program(folder.path(), "before", "exit 2");
        assert!(before.check().await.unwrap().announces.is_empty());
        let later = "echo '{\"control\": 99, \"image\": 9, \"more\": true}'";
        let later = program(folder.path(), "later", later);
        let error = later.check().await.unwrap_err();
        assert!(matches!(error, ProgramError::Protocol { found: 99, .. }));
        // It is replaced by an update.
        program(folder.path(), "later", &ours);
        later.check().await.unwrap();
        let missing = VmmProgram::new(folder.path().join("none"));
        let error = missing.check().await.unwrap_err();
        assert!(matches!(error, ProgramError::Run { .. }));
    }
}
