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
use cycles::{LeftoverVsocks, Peer, Run, RunOptions, run_cycles};
use kvm_host::pack::HostFile;
use kvm_host::rerun::{EXPORT, Rerun};

use crate::artifacts::GuestImage;
use crate::firecracker::{Firecracker, FirecrackerOptions};
use crate::host;
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

/// What a peer is put through: what our own machine was.
#[derive(Debug, Clone, Args)]
pub struct Work {
    /// How many cycles
    #[arg(long)]
    pub cycles: u32,
    /// Memory of the guest, in MiB
    #[arg(long)]
    pub memory_mib: u32,
    /// vCPUs of the guest
    #[arg(long)]
    pub vcpus: u32,
    /// Which init the guest runs
    #[arg(long)]
    pub guest: GuestImage,
    /// The long-lived monitor connects before the status check
    #[arg(long)]
    pub monitor_first: bool,
}

/// Arguments of the hidden command that measures a peer where Linux guests run.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    #[arg(long)]
    binary: PathBuf,
    #[arg(long)]
    images: PathBuf,
    #[command(flatten)]
    work: Work,
    #[arg(long)]
    output: PathBuf,
}

/// Puts the peer through the cycles, here or in a virtual host.
pub fn measure(binary: &PeerBinary, folder: &Path, work: &Work) -> anyhow::Result<Peer> {
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
        work: work.clone(),
        output: file.clone(),
    };
    let cycles = work.cycles;
    output::say(&format!("the same {cycles} cycles in {}", path.display()));
    if here {
        crate::artifacts::build_images(&arguments.images, &[work.guest])?;
        run_as_child(&arguments)?;
    } else {
        let mut files = host::image_files(folder, &[work.guest], INSIDE_IMAGES)?;
        files.push(HostFile::program(path, INSIDE_BINARY));
        arguments.binary = INSIDE_BINARY.into();
        arguments.images = INSIDE_IMAGES.into();
        arguments.output = Path::new(EXPORT).join("peer.json");
        let code = Rerun {
            parts: host::parts()?,
            arguments: arguments.command_line(),
            environment: Vec::new(),
            files,
            export: Some((EXPORT, &folder.join("peer"))),
            log_folder: folder.join("peer-host"),
            deadline: RUN_ALLOWANCE + CYCLE_ALLOWANCE * cycles,
        }
        .run()?;
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
        let work = &self.work;
        let mut words = vec![
            "peer".to_owned(),
            format!("--binary={}", path(&self.binary)),
            format!("--images={}", path(&self.images)),
            format!("--cycles={}", work.cycles),
            format!("--memory-mib={}", work.memory_mib),
            format!("--vcpus={}", work.vcpus),
            format!("--guest={}", work.guest.name()),
            format!("--output={}", path(&self.output)),
        ];
        if work.monitor_first {
            words.push("--monitor-first".to_owned());
        }
        words
    }
}

/// The hidden command: measures and writes a [`Peer`] as JSON.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let run = cycles_in(&arguments.binary, &arguments.images, &arguments.work).await?;
    let peer = Peer::of_run(run);
    if let Some(parent) = arguments.output.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&arguments.output, serde_json::to_vec(&peer)?)
        .with_context(|| format!("cannot write {}", arguments.output.display()))?;
    Ok(true)
}

/// Boots an image of the store `images` in the peer `binary` and puts it through its cycles, on
/// this very machine.
pub async fn cycles_in(binary: &Path, images: &Path, work: &Work) -> anyhow::Result<Run> {
    let folder = tempfile::tempdir().context("cannot make a folder for the peer's files")?;
    let image = images.join(work.guest.name());
    let mut subject = Firecracker::boot(FirecrackerOptions {
        binary: binary.to_owned(),
        kernel: image.join("kernel"),
        initramfs: image.join("initramfs"),
        folder: folder.path().to_owned(),
        memory_mib: work.memory_mib,
        vcpus: work.vcpus,
        monitor_first: work.monitor_first,
    })
    .await
    .context("cannot boot the peer")?;
    let mut progress = Progress::new("firecracker", Arc::new(AtomicBool::new(false)));
    let options = RunOptions {
        cycles: work.cycles,
        leftover_vsocks: LeftoverVsocks::Record,
    };
    Ok(run_cycles(&mut subject, options, &mut progress).await)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_peer_is_named_by_its_kind_and_a_path() {
        let named = "firecracker=/opt/fc=1/firecracker".parse::<PeerBinary>();
        assert_eq!(named.unwrap().path, Path::new("/opt/fc=1/firecracker"));
    }

    #[test]
    fn a_peer_without_a_path_or_of_another_kind_is_refused_with_what_to_write() {
        for text in ["", "firecracker", "firecracker=", "/usr/bin/firecracker"] {
            assert_eq!(text.parse::<PeerBinary>(), Err(PeerBinaryError::Form));
        }
        let kind = PeerBinaryError::Kind("qemu".to_owned());
        assert_eq!("qemu=/usr/bin/qemu".parse::<PeerBinary>(), Err(kind));
    }

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn the_hidden_command_is_told_all_of_the_work() {
        let arguments = Arguments {
            binary: "/bin/peer".into(),
            images: "/images".into(),
            work: Work {
                cycles: 7,
                memory_mib: 96,
                vcpus: 2,
                guest: GuestImage::Leaky,
                monitor_first: true,
            },
            output: "/export/peer.json".into(),
        };
        let parsed = CommandLine::try_parse_from(arguments.command_line()).unwrap();
        assert_eq!(format!("{:?}", parsed.arguments), format!("{arguments:?}"));
    }
}
