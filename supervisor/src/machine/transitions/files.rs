//! Removing files of a machine.

use std::fs;
use std::io;
use std::path::Path;

/// Removes a directory with all that is in it; success if it does not exist.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
