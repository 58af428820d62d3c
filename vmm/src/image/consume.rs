//! Consuming an image: from then on its memory never runs again.
//!
//! The rename comes right before the first vCPU entry, and is made durable beside the running guest.
//! Until it is, a power failure brings the image back, so nothing may leave the guest that a second run of
//! the same memory would repeat. If it cannot be made durable, the machine ends, and the rename is undone:
//! since nothing has left the guest, its image is as good as before.

use std::io;
use std::path::PathBuf;

use super::directory::{CONSUMED, ImageDirectory, MANIFEST};

/// Why an image is not consumed.
#[derive(Debug, thiserror::Error)]
pub enum ConsumeError {
    /// The image can't be marked as used, so the machine must not run.
    #[error("cannot rename {file} to {CONSUMED}")]
    Rename {
        /// The manifest.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It would be back after a power failure.
    #[error("cannot make it durable that the image in {directory} was used")]
    Sync {
        /// The image directory.
        directory: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The image stays marked as used, although the machine has ended.
    #[error("cannot rename {file} back to {MANIFEST}")]
    Undo {
        /// The consumed manifest.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// An image that was consumed, not durably yet.
#[derive(Debug, Clone)]
pub struct Consumption {
    directory: ImageDirectory,
}

impl Consumption {
    pub(super) fn begin(directory: &ImageDirectory) -> Result<Self, ConsumeError> {
        match directory.rename(MANIFEST, CONSUMED) {
            Ok(()) => Ok(Self {
                directory: directory.clone(),
            }),
            Err(source) => Err(ConsumeError::Rename {
                file: directory.file(MANIFEST),
                source,
            }),
        }
    }

    /// Makes it durable; as slow as the disk.
    ///
    /// # Errors
    /// [`ConsumeError::Sync`].
    pub fn make_durable(&self) -> Result<(), ConsumeError> {
        self.directory.sync().map_err(|source| ConsumeError::Sync {
            directory: self.directory.path().to_owned(),
            source,
        })
    }

    /// Makes the image one again that can be resumed. Only while nothing that outlives the guest has come
    /// out of it, and no vCPU will run any more.
    ///
    /// # Errors
    /// [`ConsumeError::Undo`].
    pub fn undo(&self) -> Result<(), ConsumeError> {
        self.directory
            .rename(CONSUMED, MANIFEST)
            .map_err(|source| ConsumeError::Undo {
                file: self.directory.file(CONSUMED),
                source,
            })
    }
}
