//! The same cycles in another VMM: today Firecracker, from a binary that the user supplies.
//!
//! If this machine's KVM cannot run Linux, the peer runs in a virtual host like the one of our own
//! machines. One runs after the other, so that each has the host to itself.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use cycles::{Clock, Interruption, LeftoverVsocks, Peer, Run, RunOptions, run_cycles};
use kvm_host::pack::HostFile;
use kvm_host::rerun::{EXPORT, Rerun};

use crate::artifacts::GuestImage;
use crate::firecracker::{Firecracker, FirecrackerOptions};
use crate::host;
use crate::output::{self, Progress};
use crate::{artifacts, child};

/// Folder of the images in the virtual host.
const INSIDE_IMAGES: &str = "/images";
/// Path of the peer's binary there.
const INSIDE_BINARY: &str = "/usr/bin/peer";
/// Longest that one cycle may take on average.
const CYCLE_ALLOWANCE: Duration = Duration::from_secs(30);
/// Longest that the rest of the run may take.
const RUN_ALLOWANCE: Duration = Duration::from_secs(300);

/// A peer's kind and binary, as `firecracker=/path/to/it`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerBinary {
    path: PathBuf,
}

/// Why a text does not name a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerBinaryError {
    /// It does not have the form.
    #[error("write it as firecracker=PATH")]
    Form,
    /// There is no adapter for the kind.
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

/// The work of a run: the same for a peer and for our own machine.
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

/// Arguments of the hidden command that measures a peer on this machine.
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

/// Puts the peer through the cycles, on this machine or in a virtual host.
///
/// # Errors
/// If it cannot be run, or its figures cannot be read.
pub fn measure(binary: &PeerBinary, folder: &Path, work: &Work) -> anyhow::Result<Peer> {
    let path = &binary.path;
    ensure!(
        path.is_file(),
        "there is no Firecracker binary at {}",
        path.display()
    );
    let file = folder.join("peer").join("peer.json");
    let mut arguments = Arguments {
        binary: path.clone(),
        images: folder.join("images"),
        work: work.clone(),
        output: file.clone(),
    };
    let cycles = work.cycles;
    output::say(&format!("the same {cycles} cycles in {}", path.display()));
    let code = if host::runs_linux_here() {
        artifacts::build_images(&arguments.images, &[work.guest])?;
        child::run(&arguments.command_line())?
    } else {
        let mut files = host::image_files(folder, &[work.guest], INSIDE_IMAGES)?;
        files.push(HostFile::program(path, INSIDE_BINARY));
        arguments.binary = INSIDE_BINARY.into();
        arguments.images = INSIDE_IMAGES.into();
        arguments.output = Path::new(EXPORT).join("peer.json");
        Rerun {
            parts: host::parts()?,
            arguments: arguments.command_line(),
            environment: Vec::new(),
            files,
            export: Some((EXPORT, &folder.join("peer"))),
            log_folder: folder.join("peer-host"),
            deadline: RUN_ALLOWANCE + CYCLE_ALLOWANCE * cycles,
        }
        .run()?
    };
    ensure!(
        code == 0,
        "measuring the peer failed with exit code {code}; see above"
    );
    let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("cannot parse the peer's figures in {}", file.display()))
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

/// The hidden command: measures, and writes a [`Peer`] as JSON.
///
/// # Errors
/// If the peer cannot be booted, or the file cannot be written.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let run = run_cycles_in(&arguments.binary, &arguments.images, &arguments.work).await?;
    let peer = Peer::of_run(run, Clock::Real);
    if let Some(parent) = arguments.output.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&arguments.output, serde_json::to_vec(&peer)?)
        .with_context(|| format!("cannot write {}", arguments.output.display()))?;
    Ok(true)
}

/// Boots an image of the store `images` in the peer `binary` and puts it through its cycles, on
/// this machine.
///
/// # Errors
/// If it cannot be booted.
pub async fn run_cycles_in(binary: &Path, images: &Path, work: &Work) -> anyhow::Result<Run> {
    let folder = tempfile::tempdir().context("cannot create a folder for the peer's files")?;
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
    let mut progress = Progress::new("firecracker", Interruption::never());
    let options = RunOptions {
        cycles: work.cycles,
        // As many as the run that it is compared with, which may have gone on.
        most_cycles: work.cycles,
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
    fn a_peer_without_a_path_or_of_another_kind_is_refused() {
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
    fn the_hidden_command_gets_all_of_the_work() {
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
