//! Small file systems, mounted for one test, and whether this host permits that.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::NamedTempFile;

/// Why no small file system can be mounted here, if so.
pub(crate) fn reason_against_tmpfs() -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let mounted = SmallDisk::mount(folder.path(), &["-t", "tmpfs", "none"], None);
    mounted
        .is_none()
        .then(|| "mounting a file system needs root".to_owned())
}

/// As [`reason_against_tmpfs`], for ext4.
#[allow(dead_code, reason = "not every executable uses it")]
pub(crate) fn reason_against_ext4() -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let Some(backing) = format_ext4() else {
        return Some("there is no mke2fs".to_owned());
    };
    SmallDisk::mount_ext4(folder.path(), backing)
        .is_none()
        .then(|| "mounting ext4 from a file needs root and a loop device".to_owned())
}

/// A small file system, mounted on a folder. Unmounted on drop.
pub(crate) struct SmallDisk {
    path: PathBuf,
    _backing: Option<NamedTempFile>,
}

impl SmallDisk {
    /// A tmpfs of that size, in the words of its mount option.
    pub(crate) fn tmpfs(path: &Path, size: &str) -> Self {
        let options = format!("size={size}");
        Self::mount(path, &["-t", "tmpfs", "-o", &options, "none"], None)
            .expect("a tmpfs can be mounted")
    }

    /// An ext4 of 16 MiB.
    #[allow(dead_code, reason = "not every executable uses it")]
    pub(crate) fn ext4(path: &Path) -> Self {
        let backing = format_ext4().expect("there is an mke2fs");
        Self::mount_ext4(path, backing).expect("an ext4 can be mounted")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn mount_ext4(path: &Path, backing: NamedTempFile) -> Option<Self> {
        let device = backing.path().to_str().unwrap().to_owned();
        Self::mount(path, &["-t", "ext4", "-o", "loop", &device], Some(backing))
    }

    fn mount(path: &Path, arguments: &[&str], backing: Option<NamedTempFile>) -> Option<Self> {
        // Its messages are captured: the reason of the ignored tests says what is missing.
        let output = Command::new("mount").args(arguments).arg(path).output();
        output
            .is_ok_and(|output| output.status.success())
            .then(|| Self {
                path: path.to_owned(),
                _backing: backing,
            })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, since a failing test may still have files of it mapped.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// An ext4 of 16 MiB in a file; none without mke2fs.
fn format_ext4() -> Option<NamedTempFile> {
    let backing = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    backing.as_file().set_len(16 << 20).unwrap();
    let formatted = Command::new("mke2fs")
        .args(["-q", "-t", "ext4"])
        .arg(backing.path())
        .status();
    formatted
        .is_ok_and(|status| status.success())
        .then_some(backing)
}
