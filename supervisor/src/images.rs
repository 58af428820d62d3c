//! The image store, read only: which images there are, and the paths of their files. Images are built
//! by `mctl-rootfs`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use machine_api::ImageRef;
use serde::Deserialize;

/// The image of machines that name none.
pub(crate) const DEFAULT_IMAGE: &str = "default";

/// The tag of images that name none.
const LATEST: &str = "latest";

/// Version of `image.json` that we read.
const SCHEMA: u32 = 1;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The reference is malformed.
    #[error(
        "{name:?} is not an image reference; write it as [REGISTRY/][PATH/]NAME[:TAG][@DIGEST]"
    )]
    Name {
        /// As given.
        name: String,
    },
    /// There is no such image.
    #[error("no image {name:?} in {}", store.display())]
    Missing {
        /// As given.
        name: String,
        /// The image store.
        store: PathBuf,
    },
    /// Its description cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Its description is invalid.
    #[error("{} does not describe an image", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It has another digest than the reference.
    #[error("image {name:?} has digest {found}, not {wanted}")]
    Digest {
        /// The image.
        name: String,
        /// Its digest.
        found: String,
        /// The digest of the reference.
        wanted: String,
    },
    /// A newer program built it.
    #[error("image {name:?} has schema {found}, this supervisor knows {SCHEMA}")]
    Schema {
        /// The image.
        name: String,
        /// Its schema.
        found: u32,
    },
}

/// The part of `image.json` that is used here.
#[derive(Debug, Deserialize)]
struct Description {
    schema: u32,
    kernel: String,
    initramfs: String,
    #[serde(default)]
    kernel_version: String,
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
    /// The store in the folder `root`, which need not exist yet.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Finds an image by the reference that a user wrote. An empty one means the default image.
    pub(crate) fn find(&self, written: &str) -> Result<Image, ImageError> {
        let reference = Reference::parse(written).ok_or_else(|| ImageError::Name {
            name: written.to_owned(),
        })?;
        let name = &reference.folder();
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
        let found = digest(&description);
        if let Some(wanted) = reference.digest.filter(|wanted| *wanted != found) {
            return Err(ImageError::Digest {
                name: name.to_owned(),
                found,
                wanted: wanted.to_owned(),
            });
        }
        Ok(Image {
            kernel: folder.join(file_name(&description.kernel, "kernel")),
            initramfs: folder.join(file_name(&description.initramfs, "initramfs")),
            reference: ImageRef {
                registry: "local".to_owned(),
                repository: reference.name.to_owned(),
                tag: reference.tag.to_owned(),
                digest: found,
            },
        })
    }

    /// Release of each image's kernel, if its description names it.
    pub(crate) fn kernels(&self) -> BTreeMap<String, String> {
        let kernel_of = |name: &String| {
            let text = fs::read(self.root.join(name).join("image.json")).ok()?;
            let description: Description = serde_json::from_slice(&text).ok()?;
            Some(description.kernel_version).filter(|release| !release.is_empty())
        };
        let names = self.names().into_iter();
        names
            .filter_map(|name| kernel_of(&name).map(|release| (name, release)))
            .collect()
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
            .filter(|name| Reference::parse(name).is_some_and(|image| image.folder() == *name))
            .collect();
        names.sort();
        names
    }
}

/// An image reference: `[REGISTRY/][PATH/]NAME[:TAG][@DIGEST]`, where the registry may have a port.
/// `api::bounds` describes this grammar to clients.
#[derive(Debug, PartialEq, Eq)]
struct Reference<'a> {
    name: &'a str,
    tag: &'a str,
    digest: Option<&'a str>,
}

impl<'a> Reference<'a> {
    fn parse(written: &'a str) -> Option<Self> {
        let (rest, digest) = match written.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest).filter(|digest| is_digest(digest))?.into(),
            ),
            None => (written, None),
        };
        let (path, last) = match rest.rsplit_once('/') {
            Some((path, last)) => (Some(path), last),
            None => (None, rest),
        };
        let (name, tag) = last.split_once(':').unwrap_or((last, LATEST));
        let empty = written.is_empty().then_some(DEFAULT_IMAGE);
        let reference = Self {
            name: empty.unwrap_or(name),
            tag,
            digest,
        };
        let left_out = path.is_none_or(|path| {
            path.split('/').enumerate().all(|(index, part)| {
                let host = part.split_once(':').filter(|_| index == 0);
                let host = host.filter(|(_, port)| is_port(port));
                is_name(host.map_or(part, |(host, _)| host))
            })
        });
        (left_out && is_name(reference.name) && is_name(tag)).then_some(reference)
    }

    /// Its folder in the store.
    fn folder(&self) -> String {
        if self.tag == LATEST {
            self.name.to_owned()
        } else {
            format!("{}:{}", self.name, self.tag)
        }
    }
}

fn is_port(text: &str) -> bool {
    (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `sha256:` and digits, for instance; those of our own images may have two parts with a `+` between.
fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(kind, digits)| {
        let plain =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
        plain(kind) && digits.split('+').all(plain)
    })
}

fn is_name(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Accepts only a plain file name, so that an image cannot name files outside of its folder.
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
        for name in [
            "../x", "a//b", ".", "..", ".hidden", "a b", "a:", "a:b:c", "a:../b", "@", "a@b",
        ] {
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

    #[test]
    fn references_of_registries_name_folders_of_the_store() {
        for (written, folder) in [
            ("", "default"),
            ("default", "default"),
            ("default:latest", "default"),
            ("registry.fly.io/shop:deployment-01H", "shop:deployment-01H"),
            ("localhost:5000/team/shop", "shop"),
            ("local/default:latest@sha256:0a+1b", "default"),
        ] {
            let reference = Reference::parse(written).unwrap();
            assert_eq!(reference.folder(), folder, "{written}");
        }
    }

    #[test]
    fn a_tag_is_another_image_and_a_digest_must_be_the_images_own() {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::new(folder.path().to_owned());
        for name in ["shop", "shop:v2"] {
            let text = format!(
                r#"{{"schema":1,"kernel":"k","initramfs":"i","inputs_sha256":"{}"}}"#,
                name.len()
            );
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("image.json"), text).unwrap();
        }
        assert_eq!(store.names(), ["shop", "shop:v2"]);
        let found = store.find("registry.fly.io/shop:v2").unwrap().reference;
        assert_eq!((&*found.repository, &*found.tag), ("shop", "v2"));
        assert!(store.find("shop@sha256:4").is_ok());
        let other = store.find("shop@sha256:7").unwrap_err();
        assert!(matches!(other, ImageError::Digest { .. }), "{other}");
        let missing = store.find("shop:v3").unwrap_err();
        assert!(matches!(missing, ImageError::Missing { .. }), "{missing}");
    }
}
