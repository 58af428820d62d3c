//! What a run needs on disk: the binaries beside this one, and guest images.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

/// The folder of this executable, where its companions are.
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
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let path = binaries()?.join(name);
    ensure!(
        path.is_file(),
        "{} is not there; build it with `cargo build --release`, or let ./just do it",
        path.display()
    );
    Ok(path)
}

/// A guest image of this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
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
            Self::Leaky => leaky_init(),
        }
    }
}

/// The leaky init is built aside, so that the released one can never be mistaken for it.
fn leaky_init() -> anyhow::Result<PathBuf> {
    let below_target = |folder: &Path| {
        folder
            .ancestors()
            .find(|folder| folder.ends_with("target"))
            .map(Path::to_owned)
    };
    let binaries = binaries()?;
    let target = below_target(&binaries).context("this program does not lie in a target folder")?;
    let rest = binaries
        .strip_prefix(&target)
        .context("the target folder contains itself")?;
    let path = target.join("leaky").join(rest).join("guest-init");
    ensure!(
        path.is_file(),
        "{} is not there; ./just builds it: cargo build --release -p guest-init --features leaky \
         --target-dir target/leaky",
        path.display()
    );
    Ok(path)
}

/// Builds the images or finds them up to date in `store`.
pub fn build_images(store: &Path, images: &[GuestImage]) -> anyhow::Result<()> {
    let rootfs = binary("mctl-rootfs")?;
    for image in images {
        let status = Command::new(&rootfs)
            .args(["build", "--name", image.name(), "--output"])
            .arg(store)
            .arg("--init")
            .arg(image.init()?)
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("cannot run {}", rootfs.display()))?;
        if !status.success() {
            bail!("cannot build the guest image {:?}: see above", image.name());
        }
    }
    Ok(())
}
