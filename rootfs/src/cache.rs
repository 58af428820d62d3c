//! The cache folder: where it is, and how a folder in it comes into being whole or not at all.
//!
//! Several builds may run at once, so everything is made under a temporary name and renamed.
//! Nothing here knows what the folders hold.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the cache could not be read or written.
#[derive(Debug, Error)]
pub enum CacheError {
    #[error("no cache folder: neither XDG_CACHE_HOME nor HOME is set (name one with --cache)")]
    NoHome,
    #[error("cannot make the folder {path}")]
    MakeFolder { path: PathBuf, source: io::Error },
    #[error("cannot put {path} in place")]
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
        Self::at(&base.join("mctl"))
    }

    /// A cache in `root`, which is made if it is not there.
    pub fn at(root: &Path) -> Result<Self, CacheError> {
        make_folder(root)?;
        // A relative path would change its meaning in a child process with another folder.
        let root = root
            .canonicalize()
            .map_err(|source| CacheError::MakeFolder {
                path: root.to_owned(),
                source,
            })?;
        Ok(Self { root })
    }

    /// The path of an entry, whether or not it is there.
    pub fn path(&self, entry: impl AsRef<Path>) -> PathBuf {
        self.root.join(entry)
    }

    /// A folder of its own for one build, in the cache so that a rename suffices to publish it.
    /// It is removed when dropped.
    pub fn scratch(&self) -> Result<tempfile::TempDir, CacheError> {
        let parent = self.path("tmp");
        make_folder(&parent)?;
        scratch_in(&parent)
    }
}

/// A temporary folder in `parent`, removed when dropped.
pub fn scratch_in(parent: &Path) -> Result<tempfile::TempDir, CacheError> {
    tempfile::Builder::new()
        .prefix(".tmp-")
        .tempdir_in(parent)
        .map_err(|source| CacheError::MakeFolder {
            path: parent.to_owned(),
            source,
        })
}

/// Makes a folder and its parents.
pub fn make_folder(path: &Path) -> Result<(), CacheError> {
    fs::create_dir_all(path).map_err(|source| CacheError::MakeFolder {
        path: path.to_owned(),
        source,
    })
}

/// Renames a finished folder to `path`. A folder that another build put there first stays: its
/// name tells its content, so both are the same.
pub fn publish_once(folder: &Path, path: &Path) -> Result<(), CacheError> {
    if let Some(parent) = path.parent() {
        make_folder(parent)?;
    }
    match fs::rename(folder, path) {
        Err(_) if path.is_dir() => Ok(()),
        result => result.map_err(|source| CacheError::Publish {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Puts a finished folder at `path` in one step, and returns where the folder that stood there
/// went: to `folder`, for the caller to remove.
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
