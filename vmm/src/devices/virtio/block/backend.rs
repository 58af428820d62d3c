//! The file behind a disk: opens and locks it, and reads and writes within its size.

use std::fs::{File, OpenOptions};
use std::io::{Result, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::io::Errno;

use super::identity::{Difference, DiskIdentity, mark};

/// The unit of all addresses (virtio 1.2, 5.2.4).
pub(super) const SECTOR_BYTES: u64 = 512;
/// Zeroes that are written repeatedly where a range can't be zeroed at once.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// Which file is the disk, and how it is used.
#[derive(Debug, Clone)]
pub struct BlockConfig {
    /// A raw file or a block device.
    pub path: PathBuf,
    /// The guest may only read it.
    pub read_only: bool,
}

/// Why a disk can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The file can't be opened or examined.
    #[error("cannot open disk {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The host gives no thread or descriptor, or the thread can't be confined.
    #[error("cannot start the thread of disk {path}")]
    Thread {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another process uses it.
    #[error("disk {path} is in use by another process")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// Neither a file nor a block device.
    #[error("disk {path} is neither a regular file nor a block device")]
    NotADisk {
        /// Which.
        path: PathBuf,
    },
    /// Not a whole number of sectors.
    #[error("disk {path} has {size_bytes} bytes, which is not a positive multiple of 512")]
    OddSize {
        /// Which.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// Another size than when the machine was saved.
    #[error(
        "disk {path} has {size_bytes} bytes, but had {saved_bytes} when the machine was suspended"
    )]
    SizeChanged {
        /// Which.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The size it had.
        saved_bytes: u64,
    },
    /// It is not as it was when the machine was saved.
    #[error("disk {path} {difference} since the machine was suspended")]
    Changed {
        /// Which.
        path: PathBuf,
        /// How.
        difference: Difference,
    },
    /// Another mode than when the machine was saved; the guest relies on it.
    #[error("disk {path} was attached {} and must be attached so again", if *.read_only { "read-only" } else { "writable" })]
    ModeChanged {
        /// Which.
        path: PathBuf,
        /// How it was attached.
        read_only: bool,
    },
}

/// An open disk. The lock lasts as long as the file is open.
#[derive(Debug)]
pub(super) struct Backend {
    file: File,
    size_bytes: u64,
    read_only: bool,
    id: String,
}

impl Backend {
    /// Opens and locks the file: exclusively if it may be written to, else shared with other readers.
    pub(super) fn open(config: &BlockConfig) -> std::result::Result<Self, BlockError> {
        let BlockConfig { path, read_only } = config;
        let failed = |source| BlockError::Open {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(BlockError::NotADisk { path: path.clone() });
        }
        let lock = if *read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(&file, lock) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(BlockError::InUse { path: path.clone() }),
            Err(error) => return Err(failed(error.into())),
        }
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(BlockError::OddSize {
                path: path.clone(),
                size_bytes,
            });
        }
        let id = format!("{:x}-{:x}", metadata.dev(), metadata.ino());
        Ok(Self {
            file,
            size_bytes,
            read_only: *read_only,
            id,
        })
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    /// Another descriptor of the file.
    pub(super) fn file(&self) -> Result<File> {
        self.file.try_clone()
    }

    /// What it is like now.
    pub(super) fn identity(&self) -> Result<DiskIdentity> {
        DiskIdentity::of(&self.file, self.size_bytes)
    }

    /// Shows whoever was saved with it that it may be written to from now on, if it may.
    pub(super) fn mark(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        mark(&self.file)
    }

    /// The serial number that the guest sees.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Sets the serial number to the one that the guest has seen.
    pub(super) fn set_id(&mut self, id: &str) {
        id.clone_into(&mut self.id);
    }

    /// The offset of a range of `bytes` from `sector` on, if it consists of whole sectors of the disk.
    pub(super) fn offset(&self, sector: u64, bytes: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR_BYTES)?;
        let end = offset.checked_add(bytes)?;
        (bytes.is_multiple_of(SECTOR_BYTES) && end <= self.size_bytes).then_some(offset)
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    pub(super) fn write(&self, buffer: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(buffer, offset)
    }

    /// Makes all that was written durable.
    pub(super) fn flush(&self) -> Result<()> {
        self.file.sync_data()
    }

    /// Gives space back. A discard is only advice, so it is no failure if the file system can't.
    pub(super) fn discard(&self, offset: u64, bytes: u64) -> Result<()> {
        match fallocate(&self.file, PUNCH, offset, bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a range read as zeroes; with `unmap` its space may be given back.
    pub(super) fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> Result<()> {
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, if unmap { PUNCH } else { zero }, offset, bytes) {
            Err(Errno::OPNOTSUPP) => {}
            other => return Ok(other?),
        }
        let mut position = offset;
        let end = offset + bytes;
        while position < end {
            let chunk = usize::try_from(end - position)
                .unwrap_or(usize::MAX)
                .min(ZEROES.len());
            self.file.write_all_at(&ZEROES[..chunk], position)?;
            position += chunk as u64;
        }
        Ok(())
    }
}

/// Gives space back.
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
