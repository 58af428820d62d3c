//! How much files hold.
//!
//! A file holds the smaller of its length and its blocks: neither holes count, as in the guest
//! memory of an image, nor blocks that are only reserved.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Unit of `st_blocks` (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// What a folder holds, with all folders in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FolderUsage {
    /// Number of files, sockets and folders.
    pub(crate) entries: u64,
    /// Bytes that the files hold.
    pub(crate) bytes: u64,
}

/// Bytes that the file at `path` holds; zero if there is none.
pub(crate) fn of_file(path: &Path) -> io::Result<u64> {
    Ok(existing(fs::symlink_metadata(path))?.map_or(0, |file| held(&file)))
}

/// Bytes of the blocks that the file at `path` has, reserved ones included; zero if there is none.
pub(crate) fn blocks_of_file(path: &Path) -> io::Result<u64> {
    Ok(existing(fs::symlink_metadata(path))?.map_or(0, |file| blocks(&file)))
}

/// What the folder at `path` holds. What vanishes meanwhile is left out; links are not followed.
pub(crate) fn of_folder(path: &Path) -> io::Result<FolderUsage> {
    let mut usage = FolderUsage::default();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in existing(fs::read_dir(&folder))?.into_iter().flatten() {
            let entry = entry?;
            let Some(metadata) = existing(entry.metadata())? else {
                continue;
            };
            usage.entries += 1;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                usage.bytes += held(&metadata);
            }
        }
    }
    Ok(usage)
}

fn existing<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

fn blocks(file: &Metadata) -> u64 {
    file.blocks().saturating_mul(BLOCK_BYTES)
}

fn held(file: &Metadata) -> u64 {
    file.len().min(blocks(file))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use rustix::fs::{FallocateFlags, fallocate};

    use super::*;

    #[test]
    fn neither_holes_nor_reserved_blocks_are_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut sparse = File::create(path("sparse")).unwrap();
        sparse.write_all(&[1; 8192]).unwrap();
        sparse.sync_all().unwrap();
        sparse.set_len(1 << 30).unwrap();
        let mut reserved = File::create(path("reserved")).unwrap();
        reserved.write_all(b"four").unwrap();
        fallocate(&reserved, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();

        assert_eq!(of_file(&path("sparse")).unwrap(), 8192);
        assert_eq!(of_file(&path("reserved")).unwrap(), 4);
        assert!(blocks_of_file(&path("reserved")).unwrap() >= 1 << 20);
        assert_eq!(of_file(&path("absent")).unwrap(), 0);
    }

    #[test]
    fn a_folder_holds_what_the_folders_in_it_hold() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        for (path, text) in [(folder.path().join("a"), "12"), (inner.join("b"), "345")] {
            let mut file = File::create(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            // On some file systems a file has its blocks once it is on disk.
            file.sync_all().unwrap();
        }
        let usage = of_folder(folder.path()).unwrap();
        assert_eq!((usage.entries, usage.bytes), (3, 5));
        let absent = of_folder(&folder.path().join("absent")).unwrap();
        assert_eq!(absent, FolderUsage::default());
    }
}
