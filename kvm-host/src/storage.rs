//! What a virtual host has besides its memory: Debian's root, disks that outlive it, disks of a
//! known speed.
//!
//! The outside's half: opens the files, serves the disks, and says what QEMU and the inside must
//! know. The inside mounts them (`storage.rs` of `kvm-host-init`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use serde_json::json;
use thiserror::Error;

use crate::disk::{Disk, DiskError, Loss};
use crate::nbd::{self, NbdError};
use crate::plan::{self, Device, Filesystem, Volume};

/// The storage of a virtual host.
#[derive(Debug, Clone)]
pub struct Storage {
    /// The image of Debian's root, as `debian::root_image` makes it. Its programs make the file systems.
    pub debian: PathBuf,
    /// Whether programs run in that root, and see its files; else in the initramfs.
    pub programs_in_debian: bool,
    pub disks: Vec<DiskFile>,
    pub memory_disks: Vec<MemoryDisk>,
}

/// A disk in a file of this host. It loses what was not synced when the power is cut, and only then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// Made if it does not exist; then the inside makes a file system.
    pub file: PathBuf,
    /// Where it is mounted.
    pub inside: String,
    pub size_mib: u32,
    pub filesystem: Filesystem,
}

/// A disk in the memory of the virtual host, empty at each start. Each request takes the same time, by
/// the host's own clock, so what it costs can be counted: a disk of a [`DiskFile`] takes as long as
/// this machine does, and in virtual time no time at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryDisk {
    /// Where it is mounted.
    pub inside: String,
    pub size_mib: u32,
    pub completion_us: u32,
    pub filesystem: Filesystem,
}

/// Why the storage is not there, or was not kept.
#[derive(Debug, Error)]
pub enum StorageError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("cannot open Debian's root {path}")]
    Debian { path: PathBuf, source: io::Error },
    #[error("cannot serve the disk {path}")]
    Serve { path: PathBuf, source: io::Error },
    #[error("QEMU could not use the disk {path}: {reason}")]
    Protocol { path: PathBuf, reason: String },
}

impl Storage {
    /// What the inside is told. `files` are the paths inside of the files that the host is given.
    pub(crate) fn plan(&self, files: Vec<String>) -> plan::Storage {
        let disks = self.disks.iter().enumerate().map(|(number, disk)| Volume {
            device: Device::Disk {
                serial: serial(number),
            },
            path: disk.inside.clone(),
            filesystem: disk.filesystem,
        });
        let memory_disks = self.memory_disks.iter().map(|disk| Volume {
            device: Device::Memory {
                size_mib: disk.size_mib,
                completion_us: disk.completion_us,
            },
            path: disk.inside.clone(),
            filesystem: disk.filesystem,
        });
        plan::Storage {
            programs_in_debian: self.programs_in_debian,
            volumes: disks.chain(memory_disks).collect(),
            files,
        }
    }

    /// The kernel modules that it needs inside.
    pub(crate) fn modules(&self) -> Vec<&'static str> {
        let mut modules = vec!["virtio_blk", "overlay"];
        if !self.memory_disks.is_empty() {
            modules.push("null_blk");
        }
        let filesystems = self
            .disks
            .iter()
            .map(|disk| disk.filesystem)
            .chain(self.memory_disks.iter().map(|disk| disk.filesystem));
        if filesystems.into_iter().any(|kind| kind == Filesystem::Xfs) {
            modules.push("xfs");
        }
        modules
    }
}

/// The name by which the inside finds a disk.
fn serial(number: usize) -> String {
    format!("disk-{number}")
}

/// The disks of a running virtual host.
#[derive(Debug)]
pub(crate) struct Drives {
    debian: PathBuf,
    drives: Vec<Drive>,
}

#[derive(Debug)]
struct Drive {
    path: PathBuf,
    /// QEMU's end, until QEMU has it.
    theirs: Option<OwnedFd>,
    server: JoinHandle<(Disk, Result<(), NbdError>)>,
}

impl Drives {
    /// Opens all files and starts to serve the disks.
    pub(crate) fn open(storage: &Storage) -> Result<Self, StorageError> {
        let debian = storage.debian.canonicalize();
        let debian = debian.map_err(|source| StorageError::Debian {
            path: storage.debian.clone(),
            source,
        })?;
        let mut drives = Vec::new();
        for disk in &storage.disks {
            drives.push(Drive::open(&disk.file, u64::from(disk.size_mib) << 20)?);
        }
        Ok(Self { debian, drives })
    }

    /// The arguments of QEMU that give the machine these disks.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let root = json!({
            "driver": "raw",
            "node-name": plan::DEBIAN_SERIAL,
            "read-only": true,
            "file": { "driver": "file", "filename": self.debian.to_string_lossy(), "read-only": true },
        });
        let mut arguments = with_device(&root, plan::DEBIAN_SERIAL);
        for (number, drive) in self.drives.iter().enumerate() {
            let serial = serial(number);
            let Some(theirs) = &drive.theirs else {
                continue;
            };
            let node = json!({
                "driver": "nbd",
                "node-name": serial,
                "server": { "type": "fd", "str": theirs.as_raw_fd().to_string() },
            });
            arguments.extend(with_device(&node, &serial));
        }
        arguments
    }

    /// QEMU's ends of the connections, which it inherits.
    pub(crate) fn take_connections(&mut self) -> Vec<OwnedFd> {
        self.drives
            .iter_mut()
            .filter_map(|drive| drive.theirs.take())
            .collect()
    }

    /// To be called when QEMU is gone. Without a loss the disks keep all that was written to them.
    pub(crate) fn end(self, loss: Option<Loss>) -> Result<(), StorageError> {
        for drive in self.drives {
            // The server ends with QEMU's end of the connection. A panic of it has been printed.
            drop(drive.theirs);
            let Ok((disk, served)) = drive.server.join() else {
                continue;
            };
            match loss {
                Some(loss) => disk.cut_power(loss)?,
                None => disk.close()?,
            }
            // A connection that breaks is that of a QEMU that was killed.
            if let Err(error @ NbdError::Protocol { .. }) = served {
                return Err(StorageError::Protocol {
                    path: drive.path,
                    reason: error.to_string(),
                });
            }
        }
        Ok(())
    }
}

impl Drive {
    fn open(path: &Path, size_bytes: u64) -> Result<Self, StorageError> {
        let disk = Disk::open(path, size_bytes)?;
        let serve_error = |source| StorageError::Serve {
            path: path.to_owned(),
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(serve_error)?;
        let server = std::thread::Builder::new()
            .name("kvm-host-disk".to_owned())
            .spawn(move || nbd::serve(ours, disk))
            .map_err(serve_error)?;
        Ok(Self {
            path: path.to_owned(),
            theirs: Some(theirs.into()),
            server,
        })
    }
}

fn with_device(node: &serde_json::Value, serial: &str) -> Vec<String> {
    vec![
        "-blockdev".to_owned(),
        node.to_string(),
        "-device".to_owned(),
        format!("virtio-blk-pci,drive={serial},serial={serial}"),
    ]
}
