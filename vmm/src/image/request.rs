//! What is to be saved, and why a save may fail.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::GuestMemoryError;

use super::directory::DirectoryError;
use super::format::{CpuIdentity, MAX_STATE_BYTES};
use super::step::Step;
use super::verify::VerifyError;
use crate::memory::MachineMemory;
use crate::memory::dirty::ScanError;

/// What to save, and where.
#[derive(Debug, Clone, Copy)]
pub struct SaveRequest<'a> {
    /// The image directory; it must be there.
    pub directory: &'a Path,
    /// Whose image it will be.
    pub machine_id: &'a str,
    /// Generation of the running machine.
    pub generation: u64,
    /// The machine's configuration, for the manifest.
    pub machine: &'a serde_json::Value,
    /// The processor of this host.
    pub cpu: &'a CpuIdentity,
    /// For `state.bin`.
    pub state: &'a [u8],
    /// Its disks, in the order of their devices.
    pub disks: &'a [DiskFile],
    /// Frequency of the host's time stamp counter, where it is not the guest's.
    pub host_tsc_khz: Option<u32>,
    /// Guest memory; nothing writes to it until the save has ended.
    pub memory: &'a MachineMemory,
    /// Set by another thread to cancel the save.
    pub cancel: &'a AtomicBool,
}

/// A disk. Nobody writes to it until the save has ended.
#[derive(Debug)]
pub struct DiskFile {
    /// Its path, for error messages.
    pub path: PathBuf,
    /// The file, or another descriptor of it.
    pub file: File,
    /// Its size.
    pub size_bytes: u64,
    /// The guest can't write to it.
    pub read_only: bool,
}

impl SaveRequest<'_> {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// Why a save failed. The machine's memory is as it was, so the machine may continue.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The cancel flag was set before the image was committed.
    #[error("the save was cancelled")]
    Cancelled,
    /// The directory itself.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The file system is full.
    #[error("no space is left to {step} {path}")]
    NoSpace {
        /// What was attempted.
        step: Step,
        /// On which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The user's or project's quota is full.
    #[error("the disk quota is too small to {step} {path}")]
    Quota {
        /// What was attempted.
        step: Step,
        /// On which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file system is read-only, or has become so.
    #[error("the file system is read-only: cannot {step} {path}")]
    ReadOnly {
        /// What was attempted.
        step: Step,
        /// On which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Any other error of the file system.
    #[error("cannot {step} {path}")]
    Io {
        /// What was attempted.
        step: Step,
        /// On which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Changed pages can't be found.
    #[error("cannot find the pages that have changed")]
    Scan(#[source] ScanError),
    /// A part of the old image that the save would reuse is damaged or can't be read.
    #[error("the image that this machine was resumed from is damaged")]
    OldImage(#[source] VerifyError),
    /// A page lies outside of guest memory.
    #[error("cannot read guest memory")]
    Memory(#[from] GuestMemoryError),
    /// The host gives no second thread, for the sums.
    #[error("cannot start the thread that computes the sums of guest memory")]
    Thread(#[source] io::Error),
    /// No machine's state is that large.
    #[error(
        "the state of vCPUs and devices has {bytes} bytes, and at most {MAX_STATE_BYTES} are saved"
    )]
    StateTooLarge {
        /// Its length.
        bytes: u64,
    },
    /// The machine's configuration has no JSON form.
    #[error("cannot write the manifest as JSON")]
    Manifest(#[source] serde_json::Error),
}

impl SaveError {
    pub(super) fn of_step(step: Step, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull => Self::NoSpace { step, path, source },
            io::ErrorKind::QuotaExceeded => Self::Quota { step, path, source },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { step, path, source },
            _ => Self::Io { step, path, source },
        }
    }
}

impl From<ScanError> for SaveError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Cancelled => Self::Cancelled,
            error => Self::Scan(error),
        }
    }
}
