//! The image directory: names of its files, its lock, and the renames that make an image appear and
//! disappear.
//!
//! Does not read or write the files.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Guest memory.
pub const MEMORY: &str = "memory";
/// Sums of guest memory.
pub const SUMS: &str = "memory.sums";
/// vCPUs and devices.
pub const STATE: &str = "state.bin";
/// What there is to say beyond the manifest.
pub const SUPPLEMENT: &str = "supplement.json";
/// The manifest; there is an image if it exists.
pub const MANIFEST: &str = "manifest.json";
/// The manifest of an image that a machine has been resumed from.
pub const CONSUMED: &str = "manifest.consumed";
/// Marks a save that has begun and not ended.
pub const UNFINISHED: &str = "manifest.unfinished";
/// The manifest before it is committed.
pub const TEMPORARY: &str = "manifest.tmp";

/// How long an image may stay locked by a VMM that is about to end.
const LOCK_DEADLINE: Duration = Duration::from_millis(500);
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Why an image directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Not there, not a directory, not permitted.
    #[error("cannot open the image directory {path}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Locking failed for another reason than another holder.
    #[error("cannot lock the image directory {path}")]
    Lock {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another VMM holds it.
    #[error("another VMM uses the image {path}, and did not release it within {waited_ms} ms")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// How long it was waited for.
        waited_ms: u128,
    },
}

/// Makes the directory durably; success if it exists.
fn make(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => Ok(()),
        },
    }
}

/// An image directory, locked for this process.
///
/// The lock is a `flock` on the directory itself: it needs no extra file, and it is released when the
/// last holder of the descriptor ends, however it ends.
#[derive(Debug, Clone)]
pub struct ImageDirectory {
    path: PathBuf,
    lock: Arc<File>,
}

impl ImageDirectory {
    /// Opens and locks a directory, which must exist.
    pub fn lock(path: &Path) -> Result<Self, DirectoryError> {
        let directory = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
            true => Ok(file),
            false => Err(io::ErrorKind::NotADirectory.into()),
        });
        let lock = directory.map_err(|source| DirectoryError::Open {
            path: path.to_owned(),
            source,
        })?;
        let started = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => {
                    return Ok(Self {
                        path: path.to_owned(),
                        lock: Arc::new(lock),
                    });
                }
                Err(TryLockError::Error(source)) => {
                    return Err(DirectoryError::Lock {
                        path: path.to_owned(),
                        source,
                    });
                }
                Err(TryLockError::WouldBlock) if started.elapsed() >= LOCK_DEADLINE => {
                    return Err(DirectoryError::InUse {
                        path: path.to_owned(),
                        waited_ms: LOCK_DEADLINE.as_millis(),
                    });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_RETRY),
            }
        }
    }

    /// As [`Self::lock`], but uses `held` where that is the lock of the same directory. Makes the directory,
    /// for its owner only, if it does not exist.
    pub fn lock_or_share(path: &Path, held: Option<&Arc<File>>) -> Result<Self, DirectoryError> {
        make(path).map_err(|source| DirectoryError::Open {
            path: path.to_owned(),
            source,
        })?;
        let opened = |source| DirectoryError::Open {
            path: path.to_owned(),
            source,
        };
        if let Some(held) = held {
            let wanted = fs::metadata(path).map_err(opened)?;
            let ours = held.metadata().map_err(opened)?;
            if (wanted.dev(), wanted.ino()) == (ours.dev(), ours.ino()) {
                return Ok(Self {
                    path: path.to_owned(),
                    lock: Arc::clone(held),
                });
            }
        }
        Self::lock(path)
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of one of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The descriptor that holds the lock.
    pub fn lock_file(&self) -> &Arc<File> {
        &self.lock
    }

    /// Renames one of its files.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.file(from), self.file(to))
    }

    /// As [`Self::rename`]; returns whether the file existed.
    pub fn rename_if_exists(&self, from: &str, to: &str) -> io::Result<bool> {
        match self.rename(from, to) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes one of its files, if it exists.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.file(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether it holds such a file.
    pub fn has(&self, name: &str) -> bool {
        fs::symlink_metadata(self.file(name)).is_ok()
    }

    /// Makes creations, renames and removals durable.
    pub fn sync(&self) -> io::Result<()> {
        self.lock.sync_all()
    }
}
