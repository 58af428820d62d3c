//! Writes the files that a virtual host exports into a folder of this host.
//!
//! Names from inside are not trusted: none leads out of the folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

/// Why an exported file could not be written.
#[derive(Debug, Error)]
pub enum ExportError {
    #[error("the virtual host exports {path:?}, which is outside of the exported folder")]
    Path { path: String },
    #[error("the virtual host sends the content of a file before its name")]
    NoFile,
    #[error("cannot write the exported file {path}")]
    Write { path: PathBuf, source: io::Error },
}

/// The folder that receives the files, and the file that is being written.
#[derive(Debug)]
pub(crate) struct Export {
    folder: PathBuf,
    current: Option<(PathBuf, File)>,
}

impl Export {
    pub(crate) fn into(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            current: None,
        }
    }

    /// Begins a file; an older one of that name is replaced.
    pub(crate) fn begin(&mut self, name: &str, permissions: u32) -> Result<(), ExportError> {
        let only_names = Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || !only_names {
            return Err(ExportError::Path {
                path: name.to_owned(),
            });
        }
        let path = self.folder.join(name);
        let failed = |source| ExportError::Write {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(path.parent().unwrap_or(&self.folder)).map_err(failed)?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(permissions & 0o777)
            .open(&path)
            .map_err(failed)?;
        self.current = Some((path, file));
        Ok(())
    }

    /// Appends to the file that was begun last.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        let (path, file) = self.current.as_mut().ok_or(ExportError::NoFile)?;
        file.write_all(bytes).map_err(|source| ExportError::Write {
            path: path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_out_with_their_content_in_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        let mut export = Export::into(folder.path());
        export.begin("e2e/report.json", 0o644).unwrap();
        export.append(b"{").unwrap();
        export.append(b"}").unwrap();
        export.begin("empty", 0o644).unwrap();
        assert_eq!(
            fs::read_to_string(folder.path().join("e2e/report.json")).unwrap(),
            "{}"
        );
        assert_eq!(fs::read_to_string(folder.path().join("empty")).unwrap(), "");
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["", "/etc/passwd", "../x", "a/../../x", "."] {
            let error = Export::into(folder.path()).begin(name, 0o644).unwrap_err();
            assert!(matches!(error, ExportError::Path { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn content_without_a_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = Export::into(folder.path()).append(b"x").unwrap_err();
        assert!(matches!(error, ExportError::NoFile), "{error}");
    }
}
