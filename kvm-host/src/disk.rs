//! A disk in a file, with a volatile write cache in front of it, as real disks have.
//!
//! A write is in the cache until it is flushed, and only then in the file. So the power can be cut:
//! what was not flushed is lost, whole or in part, as [`Loss`] says. The page cache of this machine
//! would keep such writes, which is why the cache is ours. How the bytes travel is `nbd`'s business.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use thiserror::Error;

/// The unit of the disk: what it reads, writes, and loses.
pub(crate) const SECTOR_BYTES: usize = 512;
/// The cache of a disk has a size, and what no longer fits is written. That is 64 MiB.
const CACHE_LIMIT_SECTORS: usize = 64 << 20 >> 9;

/// Why the file of a disk cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    #[error("cannot open the disk {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("the disk {path} is in use by another virtual host")]
    InUse { path: PathBuf },
    #[error(
        "the disk {path} has {found} bytes, {wanted} are asked for (give it its own size, or another file)"
    )]
    Size {
        path: PathBuf,
        found: u64,
        wanted: u64,
    },
    #[error("cannot write to the disk {path}")]
    Write { path: PathBuf, source: io::Error },
}

/// Why a disk refused a request.
#[derive(Debug, Error)]
pub(crate) enum AccessError {
    #[error("the range is not within the disk, or not made of whole sectors")]
    Range,
    #[error("cannot read or write the file of the disk")]
    File(#[source] io::Error),
}

/// What a power cut takes away from the writes that were not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All of them.
    All,
    /// Each sector with a chance of one half. Writes are so reordered and torn; the same seed after
    /// the same writes loses the same sectors.
    Random { seed: u64 },
}

/// A disk, for one user at a time.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    /// What was written since the last flush, by sector number.
    unsynced: BTreeMap<u64, Box<[u8; SECTOR_BYTES]>>,
}

impl Disk {
    /// Opens the disk, which is made (empty, without using space) if its file does not exist.
    pub(crate) fn open(path: &Path, size_bytes: u64) -> Result<Self, DiskError> {
        let open_error = |source| DiskError::Open {
            path: path.to_owned(),
            source,
        };
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(open_error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DiskError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(open_error(source)),
        }
        let found = file.metadata().map_err(open_error)?.len();
        if found == 0 {
            file.set_len(size_bytes).map_err(open_error)?;
        } else if found != size_bytes {
            return Err(DiskError::Size {
                path: path.to_owned(),
                found,
                wanted: size_bytes,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            size_bytes,
            unsynced: BTreeMap::new(),
        })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads whole sectors, those that were not flushed included.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), AccessError> {
        let first = self.first_sector(offset, bytes.len())?;
        self.file
            .read_exact_at(bytes, offset)
            .map_err(AccessError::File)?;
        for (number, sector) in (first..).zip(bytes.as_chunks_mut::<SECTOR_BYTES>().0) {
            if let Some(unsynced) = self.unsynced.get(&number) {
                sector.copy_from_slice(&**unsynced);
            }
        }
        Ok(())
    }

    /// Writes whole sectors into the cache.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), AccessError> {
        let first = self.first_sector(offset, bytes.len())?;
        for (number, sector) in (first..).zip(bytes.as_chunks::<SECTOR_BYTES>().0) {
            self.unsynced.insert(number, Box::new(*sector));
        }
        if self.unsynced.len() > CACHE_LIMIT_SECTORS {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what is in the cache to the file. The file itself is not synced: what these disks are
    /// to survive is the power cut of a virtual host, not that of this machine.
    pub(crate) fn flush(&mut self) -> Result<(), AccessError> {
        while let Some(entry) = self.unsynced.first_entry() {
            self.file
                .write_all_at(&**entry.get(), entry.key() * SECTOR_BYTES as u64)
                .map_err(AccessError::File)?;
            entry.remove();
        }
        Ok(())
    }

    /// Ends the use of the disk with its power on: everything is written.
    pub(crate) fn close(mut self) -> Result<(), DiskError> {
        self.finish()
    }

    /// Cuts the power: what was not flushed is lost.
    pub(crate) fn cut_power(mut self, loss: Loss) -> Result<(), DiskError> {
        match loss {
            Loss::All => self.unsynced.clear(),
            Loss::Random { seed } => {
                let mut random = SmallRng::seed_from_u64(seed);
                self.unsynced.retain(|_, _| random.random());
            }
        }
        self.finish()
    }

    fn finish(&mut self) -> Result<(), DiskError> {
        self.flush().map_err(|error| DiskError::Write {
            path: self.path.clone(),
            source: match error {
                AccessError::File(source) => source,
                AccessError::Range => io::Error::from(io::ErrorKind::InvalidInput),
            },
        })
    }

    /// The number of the sector at `offset`, for a range that is within the disk.
    fn first_sector(&self, offset: u64, bytes: usize) -> Result<u64, AccessError> {
        let sector = SECTOR_BYTES as u64;
        let bytes = bytes as u64;
        let end = offset.checked_add(bytes).ok_or(AccessError::Range)?;
        if !offset.is_multiple_of(sector) || !bytes.is_multiple_of(sector) || end > self.size_bytes
        {
            return Err(AccessError::Range);
        }
        Ok(offset / sector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECTORS: u64 = 8;
    const SIZE: u64 = SECTORS * SECTOR_BYTES as u64;

    fn sector(byte: u8) -> [u8; SECTOR_BYTES] {
        [byte; SECTOR_BYTES]
    }

    fn first_bytes(disk: &Disk) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        disk.read(0, &mut bytes).unwrap();
        bytes.into_iter().step_by(SECTOR_BYTES).collect()
    }

    fn open(folder: &tempfile::TempDir) -> Disk {
        Disk::open(&folder.path().join("disk"), SIZE).unwrap()
    }

    #[derive(Debug, Clone, Copy)]
    enum Action {
        Write { sector: u64, byte: u8 },
        Flush,
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let write =
            (0..SECTORS, 1..=u8::MAX).prop_map(|(sector, byte)| Action::Write { sector, byte });
        prop::collection::vec(prop_oneof![4 => write, 1 => Just(Action::Flush)], 0..40)
    }

    proptest! {
        /// Against the simplest model: for each sector, its content at the last flush, and what was
        /// written since.
        #[test]
        fn a_power_cut_loses_unflushed_writes_only(actions in actions(), seed: u64, all: bool) {
            let folder = tempfile::tempdir().unwrap();
            let mut disk = open(&folder);
            let mut now = vec![0; usize::try_from(SECTORS).unwrap()];
            let mut flushed = now.clone();
            for action in actions {
                match action {
                    Action::Write { sector: number, byte } => {
                        disk.write(number * SECTOR_BYTES as u64, &sector(byte)).unwrap();
                        now[usize::try_from(number).unwrap()] = byte;
                    }
                    Action::Flush => {
                        disk.flush().unwrap();
                        flushed.clone_from(&now);
                    }
                }
                prop_assert_eq!(&first_bytes(&disk), &now);
            }
            disk.cut_power(if all { Loss::All } else { Loss::Random { seed } }).unwrap();
            let found = first_bytes(&open(&folder));
            for ((found, now), flushed) in found.iter().zip(&now).zip(&flushed) {
                prop_assert!(found == flushed || (!all && found == now));
            }
        }
    }

    #[test]
    fn a_random_loss_tears_a_write_and_is_the_same_for_the_same_seed() {
        let lost_with = |seed| {
            let folder = tempfile::tempdir().unwrap();
            let mut disk = open(&folder);
            disk.write(0, &vec![7; usize::try_from(SIZE).unwrap()])
                .unwrap();
            disk.cut_power(Loss::Random { seed }).unwrap();
            first_bytes(&open(&folder))
        };
        assert_eq!(lost_with(1), lost_with(1));
        let different: std::collections::BTreeSet<_> = (0..20).map(lost_with).collect();
        assert!(different.len() > 10, "{different:?}");
        assert!(
            different
                .iter()
                .any(|bytes| bytes.contains(&0) && bytes.contains(&7))
        );
    }

    #[test]
    fn a_disk_that_is_closed_keeps_everything() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = open(&folder);
        disk.write(512, &sector(3)).unwrap();
        disk.close().unwrap();
        assert_eq!(first_bytes(&open(&folder))[1], 3);
    }

    #[test]
    fn more_than_the_cache_holds_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let size = (CACHE_LIMIT_SECTORS as u64 + 2) * SECTOR_BYTES as u64;
        let mut disk = Disk::open(&folder.path().join("disk"), size).unwrap();
        let bytes = vec![1; usize::try_from(size).unwrap()];
        disk.write(0, &bytes).unwrap();
        assert!(disk.unsynced.is_empty());
    }

    #[test]
    fn ranges_outside_or_of_parts_of_sectors_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = open(&folder);
        for (offset, bytes) in [
            (SIZE, 512),
            (u64::MAX - 511, 512),
            (1, 512),
            (0, 100),
            (SIZE - 512, 1024),
        ] {
            let written = disk.write(offset, &vec![0; bytes]);
            assert!(
                matches!(written, Err(AccessError::Range)),
                "{offset} {bytes}"
            );
            let read = disk.read(offset, &mut vec![0; bytes]);
            assert!(matches!(read, Err(AccessError::Range)), "{offset} {bytes}");
        }
    }

    #[test]
    fn a_disk_has_one_user_and_keeps_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let disk = Disk::open(&path, SIZE).unwrap();
        let error = Disk::open(&path, SIZE).unwrap_err();
        assert!(matches!(error, DiskError::InUse { .. }), "{error}");
        drop(disk);
        let error = Disk::open(&path, 2 * SIZE).unwrap_err();
        assert!(matches!(error, DiskError::Size { .. }), "{error}");
    }
}
