//! The cache folder: where it is, and how an entry appears in it as a whole or not at all.
//!
//! Several builds may run at once, so every entry is made under a temporary name and renamed. The
//! content of the entries is the caller's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the cache could not be read or written.
#[derive(Debug, Error)]
pub enum CacheError {
    #[error("no cache folder: neither XDG_CACHE_HOME nor HOME is set (give one with --cache)")]
    NoHome,
    #[error("cannot create the folder {path}")]
    CreateFolder { path: PathBuf, source: io::Error },
    #[error("cannot rename a finished folder to {path}")]
    Publish { path: PathBuf, source: io::Error },
}

/// A folder that this crate owns and that may be deleted at any time between two builds.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's own cache: `$XDG_CACHE_HOME/mctl`, else `~/.cache/mctl`.
    pub fn of_user() -> Result<Self, CacheError> {
        let base = std::env::var_os("XDG_CACHE_HOME")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
            .ok_or(CacheError::NoHome)?;
        Self::open(&base.join("mctl"))
    }

    /// Opens the cache in `root`, which is created if it does not exist.
    pub fn open(root: &Path) -> Result<Self, CacheError> {
        create_folder(root)?;
        // A relative path would mean another folder in a child process that changes its own.
        let root = root
            .canonicalize()
            .map_err(|source| CacheError::CreateFolder {
                path: root.to_owned(),
                source,
            })?;
        Ok(Self { root })
    }

    /// The path of an entry, whether or not it exists.
    pub fn path(&self, entry: impl AsRef<Path>) -> PathBuf {
        self.root.join(entry)
    }

    /// A temporary folder for one build, removed when dropped. It is in the cache, so that a rename
    /// is enough to publish its content.
    pub fn scratch(&self) -> Result<tempfile::TempDir, CacheError> {
        let parent = self.path("tmp");
        create_folder(&parent)?;
        scratch_in(&parent)
    }
}

/// A temporary folder in `parent`, removed when dropped.
pub fn scratch_in(parent: &Path) -> Result<tempfile::TempDir, CacheError> {
    tempfile::Builder::new()
        .prefix(".tmp-")
        .tempdir_in(parent)
        .map_err(|source| CacheError::CreateFolder {
            path: parent.to_owned(),
            source,
        })
}

/// Creates a folder and its parents.
pub fn create_folder(path: &Path) -> Result<(), CacheError> {
    fs::create_dir_all(path).map_err(|source| CacheError::CreateFolder {
        path: path.to_owned(),
        source,
    })
}

/// Renames a finished folder to `path`. If another build was faster, its folder stays: the name
/// identifies the content, so both are the same.
pub fn publish_once(folder: &Path, path: &Path) -> Result<(), CacheError> {
    if let Some(parent) = path.parent() {
        create_folder(parent)?;
    }
    match fs::rename(folder, path) {
        Err(_) if path.is_dir() => Ok(()),
        result => result.map_err(|source| CacheError::Publish {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Exchanges a finished folder with the one at `path` in one step: the old one is then at `folder`,
/// for the caller to remove. If there is no old one, this is a rename.
pub fn replace(folder: &Path, path: &Path) -> Result<(), CacheError> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let publish = |source: io::Error| CacheError::Publish {
        path: path.to_owned(),
        source,
    };
    match renameat_with(CWD, folder, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::NOENT) => fs::rename(folder, path).map_err(publish),
        Err(errno) => Err(publish(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(parent: &Path, name: &str, text: &str) -> PathBuf {
        let folder = parent.join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), text).unwrap();
        folder
    }

    #[test]
    fn the_first_of_two_builds_of_the_same_entry_stays() {
        let root = tempfile::tempdir().unwrap();
        let first = folder_with(root.path(), "first", "1");
        let second = folder_with(root.path(), "second", "2");
        let entry = root.path().join("deep/entry");

        publish_once(&first, &entry).unwrap();
        publish_once(&second, &entry).unwrap();

        assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "1");
    }

    #[test]
    fn a_replaced_folder_is_never_missing_and_ends_up_under_the_temporary_name() {
        let root = tempfile::tempdir().unwrap();
        let old = folder_with(root.path(), "entry", "old");
        let new = folder_with(root.path(), "new", "new");

        replace(&new, &old).unwrap();

        assert_eq!(fs::read_to_string(old.join("file")).unwrap(), "new");
        assert_eq!(fs::read_to_string(new.join("file")).unwrap(), "old");
    }

    #[test]
    fn a_folder_can_be_put_where_none_was() {
        let root = tempfile::tempdir().unwrap();
        let new = folder_with(root.path(), "new", "new");

        replace(&new, &root.path().join("entry")).unwrap();

        assert!(root.path().join("entry/file").exists());
    }
}
