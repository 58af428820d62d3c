//! The files that a run needs: the binaries beside this one, and guest images.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

/// The folder of this executable and of the project's other binaries.
pub fn binaries() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("cannot find this program's own path")?;
    let mut folder = this
        .parent()
        .context("this program has no folder")?
        .to_owned();
    // Test executables live one folder below the binaries.
    if folder.ends_with("deps") {
        folder.pop();
    }
    Ok(folder)
}

/// A binary of this project.
///
/// # Errors
/// If it has not been built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let path = binaries()?.join(name);
    ensure!(
        path.is_file(),
        "{} is missing; `./just build leaky` builds it",
        path.display()
    );
    Ok(path)
}

/// A guest image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestImage {
    /// The released init
    Default,
    /// The init that leaks one socket per cycle
    Leaky,
}

impl GuestImage {
    /// Its name in the image store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Leaky => "leaky",
        }
    }

    fn init(self) -> anyhow::Result<PathBuf> {
        match self {
            Self::Default => binary("guest-init"),
            Self::Leaky => binary("guest-init-leaky"),
        }
    }
}

/// The store of guest images of what runs in `folder`.
pub fn image_store(folder: &Path) -> PathBuf {
    folder.join("images")
}

/// Builds the images in `store`, unless they are up to date.
///
/// # Errors
/// If a binary is missing or the build fails.
pub fn build_images(store: &Path, images: &[GuestImage]) -> anyhow::Result<()> {
    let rootfs = binary("mctl-rootfs")?;
    for image in images {
        build_image(store, image.name(), &rootfs, &image.init()?)?;
    }
    Ok(())
}

/// Builds an image in `store` with that `mctl-rootfs` and that init, unless it is up to date.
///
/// # Errors
/// If the build fails.
pub fn build_image(store: &Path, name: &str, rootfs: &Path, init: &Path) -> anyhow::Result<()> {
    let status = Command::new(rootfs)
        .args(["build", "--name", name, "--output"])
        .arg(store)
        .arg("--init")
        .arg(init)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", rootfs.display()))?;
    if !status.success() {
        bail!("cannot build the guest image {name:?}: see above");
    }
    Ok(())
}
