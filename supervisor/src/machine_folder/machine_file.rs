//! `machine.json` in a machine's folder: what the machine's row says that nothing else in the folder
//! does. With it a machine is taken back whose row is lost.
//!
//! The database leads; the file follows it, and is brought up to date at each start of a supervisor.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use machine_api::{ImageRef, MachineConfig};
use serde::{Deserialize, Serialize};

use crate::model::record::MachineRecord;
use crate::paths::MachineDir;

/// Version of the file that we write, and the newest that we read.
const SCHEMA: u32 = 1;

/// The largest file that is read. A configuration is at most a request's body, 1 MiB.
const LARGEST: u64 = 4 << 20;

/// Why a machine's file says nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineFileError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is larger than any that we write.
    #[error("{} is larger than {LARGEST} bytes, so it is not ours", path.display())]
    Large {
        /// The file.
        path: PathBuf,
    },
    /// It is not what we write.
    #[error("{} does not describe a machine", path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A newer supervisor wrote it.
    #[error("{} has schema {found}, this supervisor knows up to {SCHEMA}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
}

/// Only the version, which is read first: the rest may be of another one.
#[derive(Debug, Deserialize)]
struct Version {
    schema: u32,
}

/// The file's contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MachineFile {
    schema: u32,
    /// The machine.
    pub(crate) id: String,
    /// The app it belongs to.
    pub(crate) app: String,
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) instance_id: String,
    /// Its configuration.
    pub(crate) config: MachineConfig,
    /// The image it boots.
    pub(crate) image_ref: ImageRef,
    /// Milliseconds since 1970.
    pub(crate) created_at_ms: i64,
}

impl MachineFile {
    /// What the file of `record`'s machine has to say.
    pub(crate) fn of(record: &MachineRecord) -> Self {
        Self {
            schema: SCHEMA,
            id: record.id.clone(),
            app: record.app.clone(),
            name: record.name.clone(),
            instance_id: record.instance_id.clone(),
            config: record.config.clone(),
            image_ref: record.image_ref.clone(),
            created_at_ms: record.created_at_ms,
        }
    }

    /// Whether it says of `record` what there is to say.
    pub(crate) fn describes(&self, record: &MachineRecord) -> bool {
        self.instance_id == record.instance_id
            && self.name == record.name
            && self.config == record.config
            && self.image_ref == record.image_ref
            && (&self.id, &self.app, self.created_at_ms)
                == (&record.id, &record.app, record.created_at_ms)
    }

    /// The file in `dir`.
    pub(crate) fn read(dir: &MachineDir) -> Result<Self, MachineFileError> {
        let path = dir.machine_file();
        let read = |path: &PathBuf| -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(path)?
                .take(LARGEST + 1)
                .read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(source) => return Err(MachineFileError::Read { path, source }),
        };
        if bytes.len() as u64 > LARGEST {
            return Err(MachineFileError::Large { path });
        }
        let version = serde_json::from_slice::<Version>(&bytes);
        match version {
            Ok(Version { schema }) if schema > SCHEMA => {
                return Err(MachineFileError::Newer {
                    path,
                    found: schema,
                });
            }
            _ => {}
        }
        serde_json::from_slice(&bytes).map_err(|source| MachineFileError::Contents { path, source })
    }

    /// Makes the file in `dir` say this, durably. Does nothing if it says so already.
    pub(crate) fn store(&self, dir: &MachineDir) -> io::Result<()> {
        if Self::read(dir).is_ok_and(|known| known == *self) {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(self)?;
        let (path, new) = (dir.machine_file(), dir.new_machine_file());
        // It may hold secrets, as environments do.
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir.root())?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::StateDir;

    fn record() -> MachineRecord {
        let image = ImageRef {
            repository: "default".to_owned(),
            ..ImageRef::default()
        };
        let config = MachineConfig {
            env: [("A".to_owned(), "b".to_owned())].into(),
            ..MachineConfig::default()
        };
        MachineRecord::new("default", Some("web".to_owned()), config, image)
    }

    fn folder_of(record: &MachineRecord) -> (tempfile::TempDir, MachineDir) {
        let root = tempfile::tempdir_in("/tmp").unwrap();
        let dir = StateDir::new(root.path().to_owned())
            .unwrap()
            .machine(&record.id);
        crate::paths::create_private_dir(dir.root()).unwrap();
        (root, dir)
    }

    #[test]
    fn what_was_stored_is_read_and_only_its_owner_may() {
        use std::os::unix::fs::PermissionsExt;
        let record = record();
        let (_root, dir) = folder_of(&record);
        let file = MachineFile::of(&record);
        file.store(&dir).unwrap();
        assert_eq!(MachineFile::read(&dir).unwrap(), file);
        let mode = fs::metadata(dir.machine_file()).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let written = fs::metadata(dir.machine_file())
            .unwrap()
            .modified()
            .unwrap();
        file.store(&dir).unwrap();
        let again = fs::metadata(dir.machine_file())
            .unwrap()
            .modified()
            .unwrap();
        assert_eq!(again, written, "it is written only if it changed");
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        let record = record();
        let (_root, dir) = folder_of(&record);
        let message = |bytes: &[u8]| {
            fs::write(dir.machine_file(), bytes).unwrap();
            MachineFile::read(&dir).unwrap_err().to_string()
        };
        assert!(message(b"{\"schema\": 2, \"new\": 1}").contains("has schema 2"));
        assert!(message(b"{\"schema\": 1}").contains("does not describe a machine"));
        assert!(message(b"\xff\x00").contains("does not describe a machine"));
        let large = vec![b' '; usize::try_from(LARGEST).unwrap() + 1];
        assert!(message(&large).contains("is larger than"));
        fs::remove_file(dir.machine_file()).unwrap();
        assert!(
            MachineFile::read(&dir)
                .unwrap_err()
                .to_string()
                .contains("cannot read")
        );
    }
}
