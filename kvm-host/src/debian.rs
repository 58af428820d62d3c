//! Debian's root file system, for programs that are not static: made by `mmdebstrap`, and cached.
//!
//! The cache names it by what it was made of, so another list of packages is another root. It is
//! an image that virtual hosts only read; what they write lies above it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rootfs::Report;
use rootfs::cache::{self, Cache, CacheError};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::installed::try_program;
use crate::last_lines;
use crate::sys;

const PROGRAM: &str = "mmdebstrap";
/// What `mmdebstrap` makes an ext2 image with.
const IMAGE_PROGRAM: &str = "genext2fs";
const SUITE: &str = "bookworm";
/// Raised when the image is made differently.
const VERSION: u32 = 1;
/// Make the file systems of disks (`storage.rs` of `kvm-host-init`).
const ALWAYS: [&str; 2] = ["e2fsprogs", "xfsprogs"];
const IMAGE: &str = "root.img";
/// Lines of `mmdebstrap`'s output that an error shows.
const LAST_LINES: usize = 8;

/// Why there is no root file system.
#[derive(Debug, Error)]
pub enum DebianError {
    #[error("cannot run {program} (Debian's package {program} has it)")]
    Missing {
        program: &'static str,
        source: io::Error,
    },
    #[error("{name:?} is no name of a Debian package")]
    PackageName { name: String },
    #[error(
        "cannot make Debian's root file system with {packages} (is this host offline, or is there no \
         such package? A root that was made before needs no network):\n{last_lines}"
    )]
    Failed {
        packages: String,
        last_lines: String,
    },
    #[error("cannot wait for another build in {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Checks that the programs that make a root are installed.
pub fn check_installed() -> Result<(), DebianError> {
    for program in [PROGRAM, IMAGE_PROGRAM] {
        try_program(program, "--version")
            .map_err(|source| DebianError::Missing { program, source })?;
    }
    Ok(())
}

/// As [`root_image`], with the user's own cache.
pub fn from_user_cache(packages: &[String], report: Report) -> Result<PathBuf, DebianError> {
    root_image(&Cache::of_user()?, packages, report)
}

/// The image of a root with these packages, from the cache. If it is not there it is made, which
/// needs the network and takes about a minute; of several callers one makes it.
pub fn root_image(
    cache: &Cache,
    packages: &[String],
    report: Report,
) -> Result<PathBuf, DebianError> {
    if let Some(name) = packages.iter().find(|name| !is_package_name(name)) {
        return Err(DebianError::PackageName { name: name.clone() });
    }
    let packages: BTreeSet<&str> = packages.iter().map(String::as_str).chain(ALWAYS).collect();
    let packages = Vec::from_iter(packages).join(",");
    let folder = cache.path("debian").join(name_of(&packages));
    let image = folder.join(IMAGE);
    if image.is_file() {
        return Ok(image);
    }
    cache::create_folder(&cache.path("debian"))?;
    let _lock = lock(&cache.path("debian/lock"))?;
    // Another process may have made it meanwhile.
    if !image.is_file() {
        check_installed()?;
        report(&format!(
            "making Debian's root file system with {packages}; this takes about a minute, once"
        ));
        let scratch = cache.scratch()?;
        // Only a whole folder gets the name.
        let new = scratch.path().join("root");
        cache::create_folder(&new)?;
        make(&packages, scratch.path(), &new.join(IMAGE))?;
        cache::publish_once(&new, &folder)?;
    }
    Ok(image)
}

/// Debian Policy 5.6.7: no package has a name that means something else to `mmdebstrap`.
fn is_package_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() >= 2
        && name.starts_with(is_plain)
        && name.chars().all(|c| is_plain(c) || "+-.".contains(c))
}

fn name_of(packages: &str) -> String {
    hex::encode(Sha256::digest(format!("{VERSION} {SUITE} {packages}")))
}

fn lock(path: &Path) -> Result<File, DebianError> {
    let failed = |source| DebianError::Lock {
        path: path.to_owned(),
        source,
    };
    let file = File::create(path).map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

fn make(packages: &str, scratch: &Path, image: &Path) -> Result<(), DebianError> {
    let log = scratch.join("log");
    let log_error = |source| DebianError::Write {
        path: log.clone(),
        source,
    };
    let output = File::create(&log).map_err(log_error)?;
    let mut command = Command::new(PROGRAM);
    command
        .args(["--variant=minbase", "--format=ext2"])
        .arg(format!("--include={packages}"))
        .arg(SUITE)
        .arg(image)
        // Its own working folder is there; it removes it when it is terminated.
        .env("TMPDIR", scratch)
        .env_remove("SOURCE_DATE_EPOCH")
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(log_error)?)
        .stderr(output)
        // It hangs up its whole process group at its end.
        .process_group(0);
    sys::terminate_with_this_thread(&mut command);
    let status = command.status().map_err(|source| DebianError::Missing {
        program: PROGRAM,
        source,
    })?;
    if status.success() {
        return Ok(());
    }
    Err(DebianError::Failed {
        packages: packages.to_owned(),
        last_lines: last_lines::of_file(&log, LAST_LINES),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A cache in which a root with these packages has been made.
    fn cache_with(folder: &tempfile::TempDir, packages: &str) -> (Cache, PathBuf) {
        let cache = Cache::open(folder.path()).unwrap();
        let root = cache.path("debian").join(name_of(packages));
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join(IMAGE), "image").unwrap();
        (cache, root.join(IMAGE))
    }

    #[test]
    fn a_root_is_found_by_its_packages_in_any_order_without_network() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, image) = cache_with(&folder, "e2fsprogs,nginx,passt,xfsprogs");
        let packages = ["passt", "nginx", "passt"].map(str::to_owned);
        let found = root_image(&cache, &packages, &|step| panic!("{step}")).unwrap();
        assert_eq!(found, image);
    }

    #[test]
    fn another_list_of_packages_is_another_root() {
        assert_ne!(name_of("e2fsprogs"), name_of("e2fsprogs,nginx"));
        // Part of the layout of the cache: an accidental change makes all roots anew.
        assert!(
            name_of("e2fsprogs,xfsprogs").starts_with("84455f3f357b"),
            "{}",
            name_of("e2fsprogs,xfsprogs")
        );
    }

    #[test]
    fn names_that_are_no_packages_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        for name in [
            "",
            "a",
            "nginx,vim",
            "--help",
            "Nginx",
            "?essential",
            "a b",
            "./x",
        ] {
            let error = root_image(&cache, &[name.to_owned()], &|_| {}).unwrap_err();
            assert!(
                matches!(error, DebianError::PackageName { .. }),
                "{name}: {error}"
            );
        }
        for name in ["nginx", "g++", "libc6", "postgresql-15", "7zip"] {
            assert!(is_package_name(name), "{name}");
        }
    }
}
