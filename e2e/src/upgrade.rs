//! The command that hands running and suspended machines from the release before to this one, back, and
//! here again.
//!
//! `./just upgrade` builds the release before. What happens, happens in [`crate::upgrade_here`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use kvm_host::rerun::MEMORY_MIB;

use crate::artifacts::{self, GuestImage};
use crate::kvm_place::KvmArguments;
use crate::kvm_process::KvmProcess;
use crate::upgrade_here::{self, IMAGE_BEFORE};
use crate::{measure, output};

/// Longest that all of it may take, by this machine's clock.
const DEADLINE: Duration = Duration::from_secs(3_600);

/// What to hand over.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// Folder with the programs of the release before: mctl, mctl-supervisor, mctl-vmm, mctl-rootfs and
    /// guest-init
    #[arg(long, value_name = "DIR")]
    before: PathBuf,
    #[command(flatten)]
    kvm: KvmArguments,
    /// Folder for logs
    #[arg(long, value_name = "DIR", default_value = "target/upgrade/logs")]
    output: PathBuf,
}

/// Hands machines over and back; true if none has lost anything.
///
/// # Errors
/// If a program is missing, the host cannot be started, or a machine was lost.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let place = arguments.kvm.place()?;
    measure::announce(place);
    let arguments = arguments.clone();
    let handed = tokio::task::spawn_blocking(move || hand_over(&arguments));
    handed.await.context("a thread panicked")??;
    Ok(true)
}

fn hand_over(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = &arguments.output;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let folder = folder
        .canonicalize()
        .context("cannot resolve the output folder")?;
    let before = |name| program_of(&arguments.before, name);
    let store = artifacts::image_store(&folder);
    artifacts::build_image(
        &store,
        IMAGE_BEFORE,
        &before("mctl-rootfs")?,
        &before("guest-init")?,
    )?;
    let programs = [
        before("mctl-supervisor")?,
        before("mctl-vmm")?,
        before("mctl")?,
    ];
    let process = KvmProcess {
        place: arguments.kvm.place()?,
        host_memory_mib: MEMORY_MIB,
        name: "handover",
        images: &[GuestImage::Default],
        other_images: &[IMAGE_BEFORE],
        programs: &programs,
        folder: &folder,
    };
    let (running, pieces) = process.start(upgrade_here::command_line)?;
    for line in crate::kvm_process::lines(pieces) {
        output::print(&String::from_utf8_lossy(&line));
    }
    running.wait(DEADLINE)
}

fn program_of(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = folder.join(name);
    ensure!(
        path.is_file(),
        "{} is missing; `./just upgrade` builds it",
        path.display()
    );
    path.canonicalize()
        .with_context(|| format!("cannot resolve {}", path.display()))
}
