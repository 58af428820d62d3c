//! A folder for the files and sockets of the target that a thread runs.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

/// A path in this thread's folder. In memory, where the host has such a file system and nobody says
/// otherwise: nothing here is about disks.
pub(crate) fn path(name: &str) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let create = || {
        if std::env::var_os("TMPDIR").is_none() && memory.is_dir() {
            TempDir::with_prefix_in("mctl-fuzz", memory)
        } else {
            TempDir::with_prefix("mctl-fuzz")
        }
        .expect("a folder for files")
    };
    FOLDER.with(|folder| folder.get_or_init(create).path().join(name))
}
