//! Gets the kernel and the static busybox from Debian's packages, and checks kernels that the user
//! gives as files. The choice between the two is `sources.rs`.
//!
//! A fetched package stays in the cache and is used again without asking apt, so that a second build
//! works offline and gives the same image. Unpacking the kernel image is `kernel_image.rs`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Report;
use crate::apt::{Apt, AptError, Package};
use crate::cache::{self, Cache, CacheError};
use crate::kernel_image::{KernelImage, KernelImageError};

/// A package that depends on the newest kernel for virtual machines and never changes its name.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const BUSYBOX_PACKAGE: &str = "busybox-static";

/// Why there is no kernel or no busybox.
#[derive(Debug, Error)]
pub enum SourceError {
    #[error("a kernel and its modules belong together (no {missing} given)")]
    Unpaired { missing: &'static str },
    #[error(
        "cannot get {package} from Debian (offline, give files with --kernel, --modules and --busybox or MCTL_KERNEL, MCTL_MODULES and MCTL_BUSYBOX)"
    )]
    Debian {
        package: &'static str,
        source: AptError,
    },
    #[error("{package} {version} does not depend on a kernel package")]
    NoDependency {
        package: &'static str,
        version: String,
    },
    #[error("{package} contains no {what}")]
    Incomplete { package: String, what: &'static str },
    #[error("cannot use the kernel {path}")]
    Kernel {
        path: PathBuf,
        source: KernelImageError,
    },
    #[error("the kernel {path} is version {kernel}, the modules are for {modules}")]
    VersionMismatch {
        path: PathBuf,
        kernel: String,
        modules: String,
    },
    #[error("{path} does not end in a kernel version, as /lib/modules/<version> does")]
    NoVersion { path: PathBuf },
    #[error("cannot record the fetched package in {path}")]
    Note { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// A kernel image with the modules built for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    pub version: String,
    /// A bzImage or an ELF file.
    pub image: PathBuf,
    /// A folder like `/lib/modules/<version>`.
    pub modules: PathBuf,
}

/// Whether to ask apt for a newer package if the cache has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Use the package in the cache.
    Cached,
    /// Ask for a newer one.
    Newest,
}

/// Debian's cloud kernel.
pub fn from_debian(
    cache: &Cache,
    freshness: Freshness,
    report: Report,
) -> Result<Kernel, SourceError> {
    let folder = package_folder(cache, KERNEL_PACKAGE, freshness, report)?;
    let incomplete = |what| SourceError::Incomplete {
        package: folder.display().to_string(),
        what,
    };
    let modules = ["lib/modules", "usr/lib/modules"]
        .iter()
        .find_map(|parent| only_entry(&folder.join(parent)))
        .ok_or_else(|| incomplete("modules"))?;
    let version = version_of(&modules)?;
    let image = folder.join(format!("boot/vmlinuz-{version}"));
    if !image.is_file() {
        return Err(incomplete("boot/vmlinuz-<version>"));
    }
    Ok(Kernel {
        version,
        image,
        modules,
    })
}

/// A kernel that the user gives.
pub fn from_files(image: &Path, modules: &Path) -> Result<Kernel, SourceError> {
    let version = version_of(modules)?;
    let kernel = KernelImage::read(image).map_err(|source| SourceError::Kernel {
        path: image.to_owned(),
        source,
    })?;
    if let Some(found) = kernel.version().filter(|found| *found != version) {
        return Err(SourceError::VersionMismatch {
            path: image.to_owned(),
            kernel: found.to_owned(),
            modules: version,
        });
    }
    Ok(Kernel {
        version,
        image: image.to_owned(),
        modules: modules.to_owned(),
    })
}

/// Debian's static busybox.
pub fn busybox_from_debian(
    cache: &Cache,
    freshness: Freshness,
    report: Report,
) -> Result<PathBuf, SourceError> {
    let folder = package_folder(cache, BUSYBOX_PACKAGE, freshness, report)?;
    ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|path| folder.join(path))
        .find(|path| path.is_file())
        .ok_or_else(|| SourceError::Incomplete {
            package: folder.display().to_string(),
            what: "bin/busybox",
        })
}

/// Record of the package that was fetched for a name, beside the unpacked packages.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    folder: String,
}

/// The folder with a package's files, which is fetched if necessary.
fn package_folder(
    cache: &Cache,
    name: &'static str,
    freshness: Freshness,
    report: Report,
) -> Result<PathBuf, SourceError> {
    let packages = cache.path("packages");
    let note_path = packages.join(format!("{name}.json"));
    if freshness == Freshness::Cached
        && let Some(folder) = read_note(&note_path).map(|note| packages.join(note.folder))
        && folder.is_dir()
    {
        return Ok(folder);
    }
    let debian = |source| SourceError::Debian {
        package: name,
        source,
    };
    let mut apt = Apt::new(cache);
    loop {
        let package = real_package(&mut apt, name, report)?;
        let entry = format!("{}_{}", package.name, package.version.replace(':', "%"));
        let folder = packages.join(&entry);
        if !folder.is_dir() {
            let scratch = cache.scratch()?;
            let unpacked = scratch.path().join("files");
            cache::create_folder(&unpacked)?;
            match apt.unpack(&package, &unpacked, report) {
                Err(AptError::Download { .. }) if apt.renew_lists(report).map_err(debian)? => {
                    continue;
                }
                result => result.map_err(debian)?,
            }
            cache::publish_once(&unpacked, &folder)?;
        }
        write_note(&note_path, &Note { folder: entry })?;
        return Ok(folder);
    }
}

/// Describes the package `name`; for the kernel, the package that it depends on.
fn real_package(apt: &mut Apt, name: &'static str, report: Report) -> Result<Package, SourceError> {
    let debian = |source| SourceError::Debian {
        package: name,
        source,
    };
    report(&format!("asking apt for {name}"));
    let package = apt.describe(name, report).map_err(debian)?;
    if name != KERNEL_PACKAGE {
        return Ok(package);
    }
    let real = package
        .depends
        .iter()
        .find(|dependency| dependency.starts_with("linux-image-"))
        .ok_or(SourceError::NoDependency {
            package: name,
            version: package.version.clone(),
        })?;
    apt.describe(real, report).map_err(debian)
}

/// A note that is absent or damaged only costs another call of apt.
fn read_note(path: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write_note(path: &Path, note: &Note) -> Result<(), SourceError> {
    let failed = |source| SourceError::Note {
        path: path.to_owned(),
        source,
    };
    let folder = path.parent().unwrap_or(path);
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    serde_json::to_writer(&mut file, note).map_err(|error| failed(error.into()))?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

fn version_of(modules: &Path) -> Result<String, SourceError> {
    modules
        .canonicalize()
        .ok()
        .as_deref()
        .unwrap_or(modules)
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| name.starts_with(|first: char| first.is_ascii_digit()))
        .map(str::to_owned)
        .ok_or_else(|| SourceError::NoVersion {
            path: modules.to_owned(),
        })
}

fn only_entry(folder: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    let first = entries.next()?;
    entries.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_image::sample;

    fn files(version: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("vmlinuz");
        fs::write(&image, sample::bzimage(b"")).unwrap();
        let modules = folder.path().join(version);
        fs::create_dir(&modules).unwrap();
        (folder, image, modules)
    }

    #[test]
    fn given_files_make_a_kernel_named_after_the_module_folder() {
        let (_folder, image, modules) = files("6.1.0-made");
        assert_eq!(from_files(&image, &modules).unwrap().version, "6.1.0-made");
    }

    #[test]
    fn modules_of_another_version_are_refused() {
        let (_folder, image, modules) = files("6.2.0");
        let error = from_files(&image, &modules).unwrap_err().to_string();
        assert!(
            error.ends_with("is version 6.1.0-made, the modules are for 6.2.0"),
            "{error}"
        );
    }

    #[test]
    fn a_module_folder_without_a_version_is_refused() {
        let (_folder, image, modules) = files("modules");
        let error = from_files(&image, &modules).unwrap_err();
        assert!(matches!(error, SourceError::NoVersion { .. }), "{error}");
    }

    #[test]
    fn a_package_in_the_cache_is_used_without_asking_apt() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let files = cache.path("packages/linux-image-6.1.0_1");
        fs::create_dir_all(files.join("lib/modules/6.1.0")).unwrap();
        fs::create_dir_all(files.join("boot")).unwrap();
        fs::write(files.join("boot/vmlinuz-6.1.0"), "").unwrap();
        let note = Note {
            folder: "linux-image-6.1.0_1".to_owned(),
        };
        write_note(&cache.path("packages/linux-image-cloud-amd64.json"), &note).unwrap();

        let silent: Report = &|step| panic!("{step}");
        let kernel = from_debian(&cache, Freshness::Cached, silent).unwrap();

        assert_eq!(kernel.version, "6.1.0");
    }
}
