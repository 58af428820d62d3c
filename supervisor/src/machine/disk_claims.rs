//! Who may write to a disk: one machine, for as long as a guest remembers what is on it, in a VMM or in
//! an image. The VMM's lock on the file covers the time of its process alone.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::{Mutex, PoisonError};

use machine_api::Mount;

use crate::model::state::State;

/// Why a machine cannot have a disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskClaimError {
    /// Another machine has it.
    #[error("disk {path} belongs to machine {by}, which is {}", if *writes { "writing to it, or suspended" } else { "reading it, or suspended" })]
    Taken {
        /// The disk.
        path: String,
        /// The other machine.
        by: String,
        /// It may write to it.
        writes: bool,
    },
    /// The same disk twice in one machine, written to at least once.
    #[error("disk {path} is attached twice to the same machine")]
    Twice {
        /// The disk.
        path: String,
    },
    /// It is not there.
    #[error("cannot look at disk {path}")]
    Look {
        /// The disk.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
}

/// A disk of a machine: the file itself, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    device: u64,
    /// None for a block device.
    inode: Option<u64>,
    read_only: bool,
}

impl Claim {
    fn of(mount: &Mount) -> io::Result<Self> {
        let metadata = std::fs::metadata(&mount.volume)?;
        let is_device = metadata.file_type().is_block_device();
        Ok(Self {
            device: if is_device {
                metadata.rdev()
            } else {
                metadata.dev()
            },
            inode: (!is_device).then(|| metadata.ino()),
            read_only: mount.read_only,
        })
    }

    fn conflicts(&self, other: &Self) -> bool {
        let same = (self.device, self.inode) == (other.device, other.inode);
        same && !(self.read_only && other.read_only)
    }
}

/// The disks of all machines that have a guest or an image, by the machine's id.
#[derive(Debug, Default)]
pub(crate) struct DiskClaims(Mutex<HashMap<String, Vec<Claim>>>);

impl DiskClaims {
    /// Claims the disks of the machine `id`, in place of those that it had.
    pub(crate) fn claim(&self, id: &str, mounts: &[Mount]) -> Result<(), DiskClaimError> {
        let mut claims: Vec<Claim> = Vec::with_capacity(mounts.len());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for mount in mounts {
            let path = || mount.volume.clone();
            let claim = Claim::of(mount).map_err(|source| DiskClaimError::Look {
                path: path(),
                source,
            })?;
            if claims.iter().any(|other| claim.conflicts(other)) {
                return Err(DiskClaimError::Twice { path: path() });
            }
            let others = all.iter().filter(|(other, _)| *other != id);
            for (by, others) in others {
                if let Some(other) = others.iter().find(|other| claim.conflicts(other)) {
                    return Err(DiskClaimError::Taken {
                        path: path(),
                        by: by.clone(),
                        writes: !other.read_only,
                    });
                }
            }
            claims.push(claim);
        }
        all.insert(id.to_owned(), claims);
        Ok(())
    }

    /// Notes the disks of a machine that an earlier supervisor has started. One that is missing cannot be
    /// anybody else's either.
    pub(crate) fn note(&self, id: &str, mounts: &[Mount]) {
        let claims = mounts.iter().filter_map(|mount| Claim::of(mount).ok());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(id.to_owned(), claims.collect());
    }

    /// Gives up the disks of a machine.
    pub(crate) fn release(&self, id: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(id);
    }
}

/// Whether a machine in that state has a guest or an image.
pub(crate) fn holds_disks(state: State) -> bool {
    match state {
        State::Created | State::Stopped | State::Failed | State::Destroyed => false,
        State::Starting
        | State::Started
        | State::Suspending
        | State::Suspended
        | State::Stopping
        | State::Restarting
        | State::Updating
        | State::Destroying => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(path: &std::path::Path, read_only: bool) -> Mount {
        Mount {
            volume: path.to_str().unwrap().to_owned(),
            path: "/data".to_owned(),
            read_only,
        }
    }

    #[test]
    fn a_disk_has_one_writer_or_many_readers() {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let (disk, other) = (folder.path().join("disk"), folder.path().join("link"));
        std::fs::write(&disk, "").unwrap();
        std::os::unix::fs::symlink(&disk, &other).unwrap();
        let claims = DiskClaims::default();
        claims.claim("a", &[mount(&disk, false)]).unwrap();
        for read_only in [false, true] {
            let error = claims.claim("b", &[mount(&other, read_only)]).unwrap_err();
            let DiskClaimError::Taken { by, writes, .. } = error else {
                panic!("{error}");
            };
            assert_eq!((by.as_str(), writes), ("a", true));
        }
        // Its own claim is no obstacle, and is replaced.
        claims.claim("a", &[mount(&disk, true)]).unwrap();
        claims.claim("b", &[mount(&other, true)]).unwrap();
        assert!(claims.claim("c", &[mount(&other, false)]).is_err());
        claims.release("a");
        claims.release("b");
        claims.claim("c", &[mount(&other, false)]).unwrap();
    }

    #[test]
    fn a_disk_is_attached_once_and_must_be_there() {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let disk = folder.path().join("disk");
        let claims = DiskClaims::default();
        let missing = claims.claim("a", &[mount(&disk, false)]).unwrap_err();
        assert!(matches!(missing, DiskClaimError::Look { .. }), "{missing}");
        claims.note("a", &[mount(&disk, false)]);
        std::fs::write(&disk, "").unwrap();
        let twice = [mount(&disk, false), mount(&disk, true)];
        let error = claims.claim("a", &twice).unwrap_err();
        assert!(matches!(error, DiskClaimError::Twice { .. }), "{error}");
        let readers = [mount(&disk, true), mount(&disk, true)];
        claims.claim("a", &readers).unwrap();
    }
}
