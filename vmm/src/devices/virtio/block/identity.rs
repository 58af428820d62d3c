//! Whether a disk is the one that a machine was saved with, and as it was then.
//!
//! The memory of a suspended guest knows what is on its disks: its file systems' caches and journals go on
//! from there. A disk that anybody has changed since is another one, even if its name is the same.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The extended attribute with the mark.
const MARK: &str = "user.mctl.mark";
const MARK_DIGITS: usize = 32;

/// What tells one state of a disk from all others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskIdentity {
    /// Number of the file system's device; for a block device its own.
    device: u64,
    /// The file's inode; none for a block device, whose name may be made anew.
    inode: Option<u64>,
    size_bytes: u64,
    /// Last change of the content, and last change of content or inode, in nanoseconds since 1970. None for
    /// a block device: the times of its name say nothing about its content.
    modified_ns: Option<i128>,
    changed_ns: Option<i128>,
    /// Random, and new whenever a machine begins to write to the disk, or is saved. None where the file
    /// system has no extended attributes, and for a block device.
    mark: Option<String>,
}

/// How a disk differs from the one that was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// Another inode or device.
    #[error("is another file")]
    File,
    /// Another file system, and no mark that shows that it only has another number since a reboot.
    #[error("is on another device")]
    Device,
    /// It has grown or shrunk.
    #[error("has another size")]
    Size,
    /// Another machine, or another run of this one, had it.
    #[error("was attached to a machine that may write to it")]
    Mark,
    /// A write.
    #[error("was written to")]
    Modified,
    /// A write whose time was set back, or another name, owner or mode.
    #[error("was changed, or renamed")]
    Changed,
}

impl DiskIdentity {
    /// Of the disk as it is now.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn of(file: &File, size_bytes: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if metadata.file_type().is_block_device() {
            return Ok(Self {
                device: metadata.rdev(),
                inode: None,
                size_bytes,
                modified_ns: None,
                changed_ns: None,
                mark: None,
            });
        }
        let since_1970 = |s: i64, ns: i64| Some(i128::from(s) * 1_000_000_000 + i128::from(ns));
        Ok(Self {
            device: metadata.dev(),
            inode: Some(metadata.ino()),
            size_bytes,
            modified_ns: since_1970(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: since_1970(metadata.ctime(), metadata.ctime_nsec()),
            mark: read_mark(file)?,
        })
    }

    /// How the disk `now` differs from this one; none if it is the same, unchanged.
    #[must_use]
    pub fn difference(&self, now: &Self) -> Option<Difference> {
        let same_mark = self.mark.is_some() && self.mark == now.mark;
        if self.inode != now.inode {
            Some(Difference::File)
        } else if self.device != now.device && !same_mark {
            Some(match self.inode {
                None => Difference::File,
                Some(_) => Difference::Device,
            })
        } else if self.size_bytes != now.size_bytes {
            Some(Difference::Size)
        } else if self.mark != now.mark {
            Some(Difference::Mark)
        } else if self.modified_ns != now.modified_ns {
            Some(Difference::Modified)
        } else if self.changed_ns != now.changed_ns {
            Some(Difference::Changed)
        } else {
            None
        }
    }
}

/// Marks a disk that may be written to from now on, so that whoever was saved with it finds out. Does
/// nothing where a file can't be marked.
///
/// # Errors
/// Those of the file system.
pub fn mark(file: &File) -> io::Result<()> {
    let mark = format!("{:032x}", rand::random::<u128>());
    match fsetxattr(file, MARK, mark.as_bytes(), XattrFlags::empty()) {
        Ok(()) => Ok(()),
        Err(error) if is_unsupported(error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn read_mark(file: &File) -> io::Result<Option<String>> {
    let mut mark = [0; MARK_DIGITS];
    match fgetxattr(file, MARK, &mut mark) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&mark[..bytes]).into_owned())),
        Err(Errno::NODATA) => Ok(None),
        Err(error) if is_unsupported(error) => Ok(None),
        // Longer than ours: somebody else's, and never equal to what was saved.
        Err(Errno::RANGE) => Ok(Some("unknown".to_owned())),
        Err(error) => Err(error.into()),
    }
}

/// Device nodes have no such attributes (EPERM), many file systems neither.
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> DiskIdentity {
        DiskIdentity {
            device: 1,
            inode: Some(2),
            size_bytes: 3,
            modified_ns: Some(4),
            changed_ns: Some(5),
            mark: Some("six".to_owned()),
        }
    }

    fn with(change: impl FnOnce(&mut DiskIdentity)) -> Option<Difference> {
        let mut now = saved();
        change(&mut now);
        saved().difference(&now)
    }

    #[test]
    fn each_difference_is_named() {
        assert_eq!(with(|_| {}), None);
        assert_eq!(with(|now| now.inode = Some(9)), Some(Difference::File));
        assert_eq!(with(|now| now.size_bytes = 9), Some(Difference::Size));
        assert_eq!(with(|now| now.mark = None), Some(Difference::Mark));
        let modified = |now: &mut DiskIdentity| {
            now.modified_ns = Some(9);
            now.changed_ns = Some(9);
        };
        assert_eq!(with(modified), Some(Difference::Modified));
        assert_eq!(
            with(|now| now.changed_ns = Some(9)),
            Some(Difference::Changed)
        );
    }

    #[test]
    fn a_device_may_have_another_number_if_the_mark_is_there() {
        assert_eq!(with(|now| now.device = 9), None);
        let unmarked = DiskIdentity {
            mark: None,
            ..saved()
        };
        let mut now = unmarked.clone();
        now.device = 9;
        assert_eq!(unmarked.difference(&now), Some(Difference::Device));
        let block = |device| DiskIdentity {
            device,
            inode: None,
            modified_ns: None,
            changed_ns: None,
            ..unmarked.clone()
        };
        assert_eq!(block(1).difference(&block(1)), None);
        assert_eq!(block(1).difference(&block(2)), Some(Difference::File));
    }

    #[test]
    fn a_write_with_its_time_set_back_is_found() {
        let file = tempfile::NamedTempFile::new_in("/tmp").unwrap();
        let identity = || DiskIdentity::of(file.as_file(), 512).unwrap();
        let saved = identity();
        let before = file.as_file().metadata().unwrap().modified().unwrap();
        assert_eq!(saved.difference(&identity()), None);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            // The clock of a file system ticks every few milliseconds.
            std::fs::write(file.path(), [1; 512]).unwrap();
            file.as_file().set_modified(before).unwrap();
            match saved.difference(&identity()) {
                None => assert!(std::time::Instant::now() < deadline, "never found"),
                found => return assert_eq!(found, Some(Difference::Changed)),
            }
        }
    }

    #[test]
    fn a_mark_is_new_each_time() {
        // Not all file systems of temporary folders have extended attributes.
        let file = tempfile::NamedTempFile::new_in("/tmp").unwrap();
        mark(file.as_file()).unwrap();
        let first = read_mark(file.as_file()).unwrap();
        mark(file.as_file()).unwrap();
        let second = read_mark(file.as_file()).unwrap();
        assert_eq!(first.is_some(), second.is_some());
        assert!(first.is_none() || first != second);
    }
}
