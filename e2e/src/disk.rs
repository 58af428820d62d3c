//! Disks for machines.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// Size of a disk: large enough for a few files.
const BYTES: u64 = 16 << 20;

/// Makes a raw disk with an empty file system in the file at `path`.
///
/// # Errors
/// If the file cannot be written, or `mke2fs` is missing or fails.
pub fn make(path: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot make a disk in {}", path.display());
    let file = File::create(path).with_context(failed)?;
    file.set_len(BYTES).with_context(failed)?;
    let made = Command::new("mke2fs")
        .arg("-F")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .context("cannot run mke2fs")?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "{}: {said}", failed());
    Ok(())
}
