//! The image store, as far as the supervisor needs it: which images there are and where their
//! files lie. Images are made by another program.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use machine_api::ImageRef;
use serde::Deserialize;

/// The image of machines that name none.
pub(crate) const DEFAULT_IMAGE: &str = "default";

/// Version of `image.json` that we read.
const SCHEMA: u32 = 1;

/// Why a machine can't be made from an image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The name can't be a folder's.
    #[error("{name:?} is no image name")]
    Name {
        /// As given.
        name: String,
    },
    /// There is no such image.
    #[error("no image {name:?} in {}", store.display())]
    Missing {
        /// As given.
        name: String,
        /// Where it was looked for.
        store: PathBuf,
    },
    /// Its description can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Its description makes no sense.
    #[error("{} does not describe an image", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A newer program made it.
    #[error("image {name:?} has schema {found}, this supervisor knows {SCHEMA}")]
    Schema {
        /// The image.
        name: String,
        /// Its schema.
        found: u32,
    },
}

/// What is used of `image.json`.
#[derive(Debug, Deserialize)]
struct Description {
    schema: u32,
    kernel: String,
    initramfs: String,
    #[serde(default)]
    kernel_sha256: String,
    #[serde(default)]
    initramfs_sha256: String,
    #[serde(default)]
    inputs_sha256: String,
}

/// An image to boot.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// The initramfs.
    pub(crate) initramfs: PathBuf,
    /// How the API names it.
    pub(crate) reference: ImageRef,
}

/// The folder of images.
#[derive(Debug, Clone)]
pub(crate) struct ImageStore {
    root: PathBuf,
}

impl ImageStore {
    /// At that folder, which may not exist yet.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Finds an image by the name a user wrote: `default`, `default:latest`, or nothing.
    pub(crate) fn find(&self, written: &str) -> Result<Image, ImageError> {
        let name = written.strip_suffix(":latest").unwrap_or(written);
        let name = if name.is_empty() { DEFAULT_IMAGE } else { name };
        if !is_name(name) {
            return Err(ImageError::Name {
                name: name.to_owned(),
            });
        }
        let folder = self.root.join(name);
        let path = folder.join("image.json");
        let text = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ImageError::Missing {
                name: name.to_owned(),
                store: self.root.clone(),
            },
            _ => ImageError::Read {
                path: path.clone(),
                source,
            },
        })?;
        let description: Description =
            serde_json::from_slice(&text).map_err(|source| ImageError::Description {
                path: path.clone(),
                source,
            })?;
        if description.schema != SCHEMA {
            return Err(ImageError::Schema {
                name: name.to_owned(),
                found: description.schema,
            });
        }
        Ok(Image {
            kernel: folder.join(file_name(&description.kernel, "kernel")),
            initramfs: folder.join(file_name(&description.initramfs, "initramfs")),
            reference: ImageRef {
                registry: "local".to_owned(),
                repository: name.to_owned(),
                tag: "latest".to_owned(),
                digest: digest(&description),
            },
        })
    }

    /// Names of all images.
    pub(crate) fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.path().join("image.json").is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_name(name))
            .collect();
        names.sort();
        names
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Only a plain file name is followed: an image does not reach out of its folder.
fn file_name(written: &str, otherwise: &str) -> String {
    let plain = Path::new(written)
        .file_name()
        .is_some_and(|name| name == written);
    if plain {
        written.to_owned()
    } else {
        otherwise.to_owned()
    }
}

/// One digest for kernel and initramfs.
fn digest(description: &Description) -> String {
    let Description {
        kernel_sha256,
        initramfs_sha256,
        inputs_sha256,
        ..
    } = description;
    if inputs_sha256.is_empty() {
        format!("sha256:{kernel_sha256}+{initramfs_sha256}")
    } else {
        format!("sha256:{inputs_sha256}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_not_leave_the_store() {
        let store = ImageStore::new(PathBuf::from("/nowhere"));
        for name in ["../x", "a/b", ".", "..", ".hidden", "a b"] {
            assert!(
                matches!(store.find(name), Err(ImageError::Name { .. })),
                "{name}"
            );
        }
        assert!(matches!(
            store.find("absent"),
            Err(ImageError::Missing { .. })
        ));
        assert_eq!(file_name("../../etc/passwd", "kernel"), "kernel");
    }
}
