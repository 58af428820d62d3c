//! The initramfs of the virtual host: `kvm-host-init`, KVM's modules, a plan and given files.
//!
//! Built anew for each start, in an unnamed file, so nothing of it is left behind. What runs inside
//! is the caller's choice.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use rootfs::Report;
use rootfs::cache::{Cache, CacheError};
use rootfs::cpio::CpioError;
use rootfs::initramfs::{self, Busybox, InitramfsError};
use rootfs::kernel::{Freshness, Kernel, SourceError};
use rootfs::modules::{ModuleTree, ModulesError};
use rootfs::sources::Sources;
use thiserror::Error;

use crate::emulator::Emulator;
use crate::plan::{PLAN_PATH, Plan};

/// What QEMU's machine needs besides KVM: its network card, the channel's port. Bochs' has neither.
const QEMU_MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "af_packet",
];

/// Why there is no initramfs for the virtual host.
#[derive(Debug, Error)]
pub enum PackError {
    #[error("cannot find this program's own path")]
    OwnPath(#[source] io::Error),
    #[error("{path} does not exist; build it with `cargo build --release`, or let ./just do it")]
    NoInit { path: PathBuf },
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Modules(#[from] ModulesError),
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    #[error("cannot pack the files of the virtual host")]
    Cpio(#[from] CpioError),
    #[error("cannot write the plan")]
    Plan(#[from] serde_json::Error),
    #[error("cannot make a file for the initramfs")]
    File(#[source] io::Error),
}

/// The `kvm-host-init` of this build: beside this program, or one folder up for a test executable.
pub fn find_init() -> Result<PathBuf, PackError> {
    let this = std::env::current_exe().map_err(PackError::OwnPath)?;
    let mut folder = this.parent().unwrap_or(&this);
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap_or(folder);
    }
    let path = folder.join("kvm-host-init");
    if !path.is_file() {
        return Err(PackError::NoInit { path });
    }
    Ok(path)
}

/// The parts that every virtual host has: kernel, busybox and the first process.
#[derive(Debug)]
pub struct Parts {
    kernel: Kernel,
    busybox: Busybox,
    init: PathBuf,
}

impl Parts {
    /// As [`Self::gather`], with the user's own cache.
    pub fn from_user_cache(init: &Path, report: Report) -> Result<Self, PackError> {
        Self::gather(&Cache::of_user()?, init, report)
    }

    /// Takes kernel and busybox as the environment names them, else Debian's from the cache, which
    /// fetches them the first time; `init` is the `kvm-host-init` binary.
    pub fn gather(cache: &Cache, init: &Path, report: Report) -> Result<Self, PackError> {
        let sources = Sources::from_environment()?;
        let kernel = sources.kernel(cache, Freshness::Cached, report)?;
        let busybox = sources.busybox(cache, Freshness::Cached, report)?;
        Ok(Self {
            kernel,
            busybox: Busybox::open(&busybox)?,
            init: init.to_owned(),
        })
    }

    pub(crate) fn kernel_image(&self) -> &Path {
        &self.kernel.image
    }

    /// Packs everything into a file without a name.
    pub(crate) fn pack(
        &self,
        plan: &Plan,
        emulator: Emulator,
        more_modules: &[&str],
        files: &[HostFile],
    ) -> Result<File, PackError> {
        let mut wanted = vec![emulator.kvm_module()];
        if !emulator.is_bochs() {
            wanted.extend(QEMU_MODULES);
        }
        wanted.extend(more_modules);
        let modules = ModuleTree::open(&self.kernel.modules)?.load_order(&wanted, &[])?;
        let mut archive = initramfs::base(&self.init, &self.busybox, &modules)?;
        archive.add_bytes(PLAN_PATH, 0o600, serde_json::to_vec(plan)?);
        for file in files {
            archive.add_host_file(&file.inside, file.permissions, &file.source);
        }
        let packed = tempfile::tempfile().map_err(PackError::File)?;
        archive.write_to(BufWriter::new(&packed))?;
        Ok(packed)
    }
}

/// A file of this host that is copied into the virtual one.
#[derive(Debug, Clone)]
pub struct HostFile {
    pub source: PathBuf,
    /// Its absolute path inside.
    pub inside: String,
    pub permissions: u32,
}

impl HostFile {
    /// An executable file.
    pub fn program(source: impl Into<PathBuf>, inside: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            inside: inside.into(),
            permissions: 0o755,
        }
    }

    /// A file that is only read.
    pub fn data(source: impl Into<PathBuf>, inside: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            inside: inside.into(),
            permissions: 0o644,
        }
    }
}
