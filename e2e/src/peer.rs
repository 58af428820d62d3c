//! Another VMM on the same work: today Firecracker, from a binary that the user supplies.
//!
//! Where this machine's KVM can't run Linux, the peer runs inside a virtual host of the same make
//! as our own machines did, one after the other, so that both have the host for themselves.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use cycles::{LeftoverVsocks, Peer, RunOptions, run_cycles};
use kvm_host::pack::HostFile;

use crate::artifacts::GuestImage;
use crate::firecracker::{Firecracker, FirecrackerOptions};
use crate::host;
use crate::inside::{self, EXPORT, Inside};
use crate::output::{self, Progress};

/// Where images lie inside a virtual host that measures a peer.
const INSIDE_IMAGES: &str = "/images";
/// Where the peer's binary lies there.
const INSIDE_BINARY: &str = "/usr/bin/peer";
/// Most time per cycle that a peer gets before the run is given up.
const CYCLE_ALLOWANCE: Duration = Duration::from_secs(30);
/// Time for everything else.
const RUN_ALLOWANCE: Duration = Duration::from_secs(300);

/// A peer's kind and binary, as `firecracker=/path/to/it`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerBinary {
    path: PathBuf,
}

/// Why a text names no peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerBinaryError {
    /// Not of the form.
    #[error("write it as firecracker=PATH")]
    Form,
    /// A kind that there is no adapter for.
    #[error("there is no adapter for {0:?}; the only one is firecracker")]
    Kind(String),
}

impl FromStr for PeerBinary {
    type Err = PeerBinaryError;

    fn from_str(text: &str) -> Result<Self, PeerBinaryError> {
        match text.split_once('=') {
            Some(("firecracker", path)) if !path.is_empty() => Ok(Self { path: path.into() }),
            Some(("firecracker", _)) | None => Err(PeerBinaryError::Form),
            Some((kind, _)) => Err(PeerBinaryError::Kind(kind.to_owned())),
        }
    }
}

/// Arguments of the hidden command that measures a peer where Linux guests run.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    #[arg(long)]
    binary: PathBuf,
    #[arg(long)]
    images: PathBuf,
    #[arg(long)]
    cycles: u32,
    #[arg(long)]
    memory_mib: u32,
    #[arg(long)]
    vcpus: u32,
    #[arg(long)]
    output: PathBuf,
}

/// Puts the peer through the cycles, here or in a virtual host.
pub fn measure(
    binary: &PeerBinary,
    folder: &Path,
    cycles: u32,
    memory_mib: u32,
    vcpus: u32,
) -> anyhow::Result<Peer> {
    let path = &binary.path;
    ensure!(
        path.is_file(),
        "there is no Firecracker binary at {}",
        path.display()
    );
    let file = folder.join("peer").join("peer.json");
    let here = host::runs_linux_here();
    let mut arguments = Arguments {
        binary: path.clone(),
        images: folder.join("images"),
        cycles,
        memory_mib,
        vcpus,
        output: file.clone(),
    };
    output::say(&format!("the same {cycles} cycles in {}", path.display()));
    if here {
        crate::artifacts::build_images(&arguments.images, &[GuestImage::Default])?;
        run_as_child(&arguments)?;
    } else {
        let mut files = host::image_files(folder, &[GuestImage::Default], INSIDE_IMAGES)?;
        files.push(HostFile::program(path, INSIDE_BINARY));
        arguments.binary = INSIDE_BINARY.into();
        arguments.images = INSIDE_IMAGES.into();
        arguments.output = Path::new(EXPORT).join("peer.json");
        let code = inside::run(Inside {
            arguments: arguments.command_line(),
            environment: Vec::new(),
            files,
            export: Some((EXPORT, &folder.join("peer"))),
            logs: folder.join("peer-host"),
            deadline: RUN_ALLOWANCE + CYCLE_ALLOWANCE * cycles,
        })?;
        ensure!(
            code == 0,
            "measuring the peer failed with exit code {code}; see above"
        );
    }
    let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).context("the peer's figures make no sense")
}

/// A process of its own, as inside a virtual host, so that both ways are one.
fn run_as_child(arguments: &Arguments) -> anyhow::Result<()> {
    let this = std::env::current_exe().context("cannot find this program's own path")?;
    let status = std::process::Command::new(this)
        .args(arguments.command_line())
        .status()?;
    ensure!(status.success(), "measuring the peer failed; see above");
    Ok(())
}

impl Arguments {
    fn command_line(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        [
            "peer".to_owned(),
            format!("--binary={}", path(&self.binary)),
            format!("--images={}", path(&self.images)),
            format!("--cycles={}", self.cycles),
            format!("--memory-mib={}", self.memory_mib),
            format!("--vcpus={}", self.vcpus),
            format!("--output={}", path(&self.output)),
        ]
        .to_vec()
    }
}

/// The hidden command: measures and writes a [`Peer`] as JSON.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let folder = tempfile::tempdir().context("cannot make a folder for the peer's files")?;
    let image = arguments.images.join(GuestImage::Default.name());
    let mut subject = Firecracker::boot(FirecrackerOptions {
        binary: arguments.binary.clone(),
        kernel: image.join("kernel"),
        initramfs: image.join("initramfs"),
        folder: folder.path().to_owned(),
        memory_mib: arguments.memory_mib,
        vcpus: arguments.vcpus,
    })
    .await
    .context("cannot boot the peer")?;
    let mut progress = Progress::new("firecracker", Arc::new(AtomicBool::new(false)));
    let options = RunOptions {
        cycles: arguments.cycles,
        leftover_vsocks: LeftoverVsocks::Record,
    };
    let run = run_cycles(&mut subject, options, &mut progress).await;
    let peer = Peer::of_run(run);
    if let Some(parent) = arguments.output.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&arguments.output, serde_json::to_vec(&peer)?)
        .with_context(|| format!("cannot write {}", arguments.output.display()))?;
    Ok(true)
}
