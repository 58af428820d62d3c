//! File systems: mounts those that every guest has, and block devices. Which block devices is the
//! caller's choice; unmounting them is part of the power-off.

use std::fs;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::os::console::say;

/// Why a file system was not mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("mount point {0:?} is not an absolute path")]
    NotAbsolute(PathBuf),
    #[error("cannot create mount point {target:?}")]
    MakeTarget {
        target: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot mount {source_name} on {target:?}")]
    Mount {
        source_name: String,
        target: PathBuf,
        #[source]
        source: Errno,
    },
}

struct Entry {
    fstype: &'static str,
    target: &'static str,
    flags: MsFlags,
    options: &'static str,
    /// The guest is of no use without it.
    is_needed: bool,
}

const NO_EXEC: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);
const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

#[rustfmt::skip]
const TABLE: &[Entry] = &[
    Entry { fstype: "proc",     target: "/proc",          flags: NO_EXEC,             options: "",                  is_needed: true },
    Entry { fstype: "sysfs",    target: "/sys",           flags: NO_EXEC,             options: "",                  is_needed: true },
    Entry { fstype: "devtmpfs", target: "/dev",           flags: MsFlags::MS_NOSUID,  options: "mode=0755",         is_needed: true },
    Entry { fstype: "devpts",   target: "/dev/pts",       flags: NO_EXEC.difference(MsFlags::MS_NODEV), options: "mode=0620,ptmxmode=0666", is_needed: false },
    Entry { fstype: "tmpfs",    target: "/dev/shm",       flags: NO_DEVICES,          options: "mode=1777",         is_needed: false },
    Entry { fstype: "tmpfs",    target: "/run",           flags: NO_DEVICES,          options: "mode=0755",         is_needed: false },
    Entry { fstype: "tmpfs",    target: "/tmp",           flags: NO_DEVICES,          options: "mode=1777",         is_needed: false },
    Entry { fstype: "cgroup2",  target: "/sys/fs/cgroup", flags: NO_EXEC,             options: "nsdelegate",        is_needed: false },
];

/// Symbolic links that programs expect in `/dev`: target and link.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts the table. Only a needed entry that fails is an error; any other is logged.
pub(crate) fn mount_table() -> Result<(), MountError> {
    for entry in TABLE {
        match mount_entry(entry) {
            Err(error) if entry.is_needed => return Err(error),
            Err(error) => say(format_args!(
                "continuing without it: {}",
                error_text::with_causes(&error)
            )),
            Ok(()) => {}
        }
    }
    for (target, link) in DEVICE_LINKS {
        // Fails where the link exists, or where the guest has to do without it.
        let _present = std::os::unix::fs::symlink(target, link);
    }
    Ok(())
}

fn mount_entry(entry: &Entry) -> Result<(), MountError> {
    make_target(entry.target)?;
    let options = Some(entry.options).filter(|options| !options.is_empty());
    let mounted = mount(
        Some(entry.fstype),
        entry.target,
        Some(entry.fstype),
        entry.flags,
        options,
    );
    match mounted {
        // Mounted already: a kernel may be configured to mount devtmpfs itself.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(MountError::Mount {
            source_name: entry.fstype.to_owned(),
            target: entry.target.into(),
            source: errno,
        }),
    }
}

/// Mounts an ext4 file system; succeeds if it is mounted there already.
pub(crate) fn mount_block_device(
    device: &str,
    target: &str,
    read_only: bool,
) -> Result<(), MountError> {
    if !target.starts_with('/') {
        return Err(MountError::NotAbsolute(target.into()));
    }
    let present = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if disk_mounts(&present).contains(&(device.to_owned(), target.to_owned())) {
        return Ok(());
    }
    make_target(target)?;
    let flags = if read_only {
        MsFlags::MS_RDONLY
    } else {
        MsFlags::empty()
    };
    let mounted = mount(Some(device), target, Some("ext4"), flags, None::<&str>);
    mounted.map_err(|source| MountError::Mount {
        source_name: device.to_owned(),
        target: target.into(),
        source,
    })
}

/// Block devices and their mount points in the text of `/proc/self/mounts`, oldest first.
pub(crate) fn disk_mounts(mounts: &str) -> Vec<(String, String)> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, target) = (fields.next()?, fields.next()?);
            let is_disk = device.starts_with("/dev/");
            is_disk.then(|| (unescape(device), unescape(target)))
        })
        .collect()
}

/// The kernel writes space, tab, newline and backslash of paths as octal numbers.
fn unescape(path: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(path.to_owned(), |path, (code, character)| {
        path.replace(code, character)
    })
}

fn make_target(target: &str) -> Result<(), MountError> {
    fs::create_dir_all(target).map_err(|source| MountError::MakeTarget {
        target: target.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_block_devices_are_disks() {
        let mounts = "proc /proc proc rw 0 0\n/dev/vda /data\\040disk ext4 rw 0 0\n\
                      tmpfs /run tmpfs rw 0 0\n/dev/vdb /data\\040disk/in ext4 ro 0 0\n";
        let disks = [("/dev/vda", "/data disk"), ("/dev/vdb", "/data disk/in")]
            .map(|(device, target)| (device.to_owned(), target.to_owned()));
        assert_eq!(disk_mounts(mounts), disks);
    }
}
