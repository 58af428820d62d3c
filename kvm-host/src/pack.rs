//! The initramfs of the virtual host: `kvm-host-init`, KVM's modules, a plan and given files.
//!
//! Built anew for each start, in memory or an unnamed file, so nothing of it is left behind.
//! Where its parts come from is decided by the caller.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use rootfs::Report;
use rootfs::cache::Cache;
use rootfs::cpio::CpioError;
use rootfs::initramfs::{self, Busybox, InitramfsError};
use rootfs::kernel::{Freshness, Kernel, SourceError};
use rootfs::modules::{ModuleTree, ModulesError};
use rootfs::sources::Sources;
use thiserror::Error;

use crate::plan::{PLAN_PATH, Plan};

/// What the emulated machine needs: KVM for an AMD CPU, its network card, the channel's port.
const MODULES: [&str; 6] = [
    "kvm_amd",
    "virtio_pci",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "af_packet",
];

/// Why there is no initramfs for the virtual host.
#[derive(Debug, Error)]
pub enum PackError {
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

/// What every virtual host is made of.
#[derive(Debug)]
pub struct Parts {
    kernel: Kernel,
    busybox: Busybox,
    init: PathBuf,
}

impl Parts {
    /// Takes kernel and busybox as the environment names them, else Debian's from the cache, fetching
    /// them the first time; `init` is the `kvm-host-init` binary.
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
    pub(crate) fn pack(&self, plan: &Plan, files: &[HostFile]) -> Result<File, PackError> {
        let modules = ModuleTree::open(&self.kernel.modules)?.load_order(&MODULES, &[])?;
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

/// A file of this host that the virtual one shall have.
#[derive(Debug, Clone)]
pub struct HostFile {
    pub source: PathBuf,
    /// Its absolute path there.
    pub inside: String,
    pub permissions: u32,
}

impl HostFile {
    /// A program that may be run.
    pub fn program(source: impl Into<PathBuf>, inside: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            inside: inside.into(),
            permissions: 0o755,
        }
    }

    /// A file to be read.
    pub fn data(source: impl Into<PathBuf>, inside: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            inside: inside.into(),
            permissions: 0o644,
        }
    }
}
