//! Paths below the state directory, and how its directories are created.
//!
//! ```text
//! <state-dir>/mctl.db  lock  api.sock  images/<name>/  machines/<id>/{machine.json,image/,c.sock,…}
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket, without the closing zero byte.
const SOCKET_PATH_BYTES: usize = 107;

/// The state directory is nested too deep for its sockets.
#[derive(Debug, thiserror::Error)]
#[error(
    "state directory {} is too long: sockets below it would exceed {SOCKET_PATH_BYTES} bytes \
     (choose a path of at most {} bytes)",
    path.display(),
    longest_state_dir()
)]
pub(crate) struct TooLong {
    path: PathBuf,
}

/// The state directory.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    root: PathBuf,
}

/// The longest socket path below the state directory: that of a connection opened by the guest.
const LONGEST_SOCKET: &str = "/machines/0123456789abcd/v.sock_4294967295";

const fn longest_state_dir() -> usize {
    SOCKET_PATH_BYTES - LONGEST_SOCKET.len()
}

impl StateDir {
    /// Takes an absolute path.
    pub(crate) fn new(root: PathBuf) -> Result<Self, TooLong> {
        if root.as_os_str().len() > longest_state_dir() {
            return Err(TooLong { path: root });
        }
        Ok(Self { root })
    }

    /// Its own path.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Locked while a supervisor uses this state directory.
    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The database.
    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("mctl.db")
    }

    /// The API's socket, unless configured otherwise.
    pub(crate) fn api_socket(&self) -> PathBuf {
        self.root.join("api.sock")
    }

    /// The image store.
    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// All machines' directories.
    pub(crate) fn machines(&self) -> PathBuf {
        self.root.join("machines")
    }

    /// One machine's directory.
    pub(crate) fn machine(&self, id: &str) -> MachineDir {
        MachineDir {
            root: self.machines().join(id),
        }
    }
}

/// A machine's directory.
#[derive(Debug, Clone)]
pub(crate) struct MachineDir {
    root: PathBuf,
}

impl MachineDir {
    /// Its own path.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Who the machine is, for the case that the database is lost.
    pub(crate) fn machine_file(&self) -> PathBuf {
        self.root.join("machine.json")
    }

    /// The same while it is written.
    pub(crate) fn new_machine_file(&self) -> PathBuf {
        self.root.join("machine.json.new")
    }

    /// The image that a suspend writes.
    pub(crate) fn image(&self) -> PathBuf {
        self.root.join("image")
    }

    /// The file that makes an image valid.
    pub(crate) fn image_manifest(&self) -> PathBuf {
        self.root.join("image").join("manifest.json")
    }

    /// The guest memory of an image, which the VMM of a resumed machine maps.
    pub(crate) fn image_memory(&self) -> PathBuf {
        self.root.join("image").join("memory")
    }

    /// Where images lie that no resume uses any more, and that nobody has removed.
    pub(crate) fn images_set_aside(&self) -> PathBuf {
        self.root.join("set-aside")
    }

    /// Where the image that the generation `generation` wrote is set aside.
    pub(crate) fn image_set_aside(&self, generation: u64) -> PathBuf {
        self.images_set_aside().join(format!("image-{generation}"))
    }

    /// Whether there is an image. If that cannot be found out there is one: a resume will tell.
    pub(crate) fn may_have_image(&self) -> bool {
        self.image_manifest().try_exists().unwrap_or(true)
    }

    /// The serial console's output, appended to by each VMM.
    pub(crate) fn console(&self) -> PathBuf {
        self.root.join("console.log")
    }

    /// All log lines with time and source.
    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("log.ndjson")
    }

    /// The log of the VMM processes.
    pub(crate) fn vmm_log(&self) -> PathBuf {
        self.root.join("vmm.log")
    }

    /// The same, before its last rotation.
    pub(crate) fn older_vmm_log(&self) -> PathBuf {
        self.root.join("vmm.log.1")
    }

    /// The report that a VMM writes when it ends.
    pub(crate) fn exit_report(&self) -> PathBuf {
        self.root.join("exit.json")
    }

    /// The VMM's control socket.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.root.join("c.sock")
    }

    /// The VMM's vsock host socket.
    pub(crate) fn vsock_socket(&self) -> PathBuf {
        self.root.join("v.sock")
    }
}

/// Creates a directory for its owner only, with the ones above it; success if it exists.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_socket_just_fits() {
        let root = PathBuf::from(format!("/{}", "d".repeat(longest_state_dir() - 1)));
        let dir = StateDir::new(root).unwrap();
        let longest = dir
            .machine("0123456789abcd")
            .root()
            .join("v.sock_4294967295");
        assert_eq!(longest.as_os_str().len(), SOCKET_PATH_BYTES);
        assert!(StateDir::new(PathBuf::from("/d".repeat(40))).is_err());
    }
}
