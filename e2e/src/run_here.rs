//! The hidden command that puts one machine through its cycles on the host where it is called. Its
//! events go to standard output, for the `mctl-e2e` that called it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use client::Client;
use cycles::{Host, MachineSubject, Observer, Run, RunOptions, run_cycles};

use crate::counter;
use crate::host::KvmHost;
use crate::machine::{STEP_DEADLINE, boot};
use crate::output;
use crate::peer::{PeerKind, PeerMachine, PeerOptions};
use crate::run_event::EventWriter;
use crate::work::{Vmm, Work};

/// What to run.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// The store of guest images
    #[arg(long)]
    images: PathBuf,
    /// A [`Work`] as JSON
    #[arg(long)]
    work: String,
}

/// The command line of this command.
///
/// # Errors
/// If a path in `work` is not UTF-8.
pub fn command_line(images: &Path, work: &Work) -> anyhow::Result<Vec<String>> {
    let work = serde_json::to_string(work).context("cannot write the work as JSON")?;
    let images = images.display().to_string();
    Ok(["run-here", "--images", &images, "--work", &work]
        .map(str::to_owned)
        .to_vec())
}

/// Runs the command.
///
/// # Errors
/// If the machine cannot be booted or destroyed.
pub async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let work: Work = serde_json::from_str(&arguments.work).context("cannot parse the work")?;
    let mut events = EventWriter::new();
    let (host, run) = match &work.vmm {
        Vmm::Mctl => {
            let (host, run) = run_mctl(&arguments.images, &work, &mut events).await?;
            (Some(host), run)
        }
        Vmm::Peer { kind, binary } => {
            let run = run_peer(*kind, binary, &arguments.images, &work, &mut events).await?;
            (None, run)
        }
    };
    events.ended(host, &run);
    Ok(())
}

async fn run_mctl(
    images: &Path,
    work: &Work,
    observer: &mut dyn Observer,
) -> anyhow::Result<(Host, Run)> {
    let folder = tempfile::tempdir().context("cannot create a folder for the state")?;
    let host = KvmHost::start_here(folder.path(), images).await?;
    let result = async {
        let run = run_on_new_machine(host.client(), work, observer).await?;
        Ok((host.describe().await?, run))
    }
    .await;
    // The folder is gone afterwards.
    let (description, run) =
        result.map_err(|error: anyhow::Error| error.context(host.ends_of_logs()))?;
    if run.failed_check().is_some() {
        output::say(&host.ends_of_logs());
    }
    host.stop()?;
    Ok((description, run))
}

/// Boots a machine, puts it through its cycles, and destroys it.
async fn run_on_new_machine(
    client: &Client,
    work: &Work,
    observer: &mut dyn Observer,
) -> anyhow::Result<Run> {
    let machine = boot(client, &work.machine()).await?;
    let id = machine.id.clone();
    let file = Some(counter::FILE.to_owned());
    let mut subject = MachineSubject::new(client.clone(), machine, file, STEP_DEADLINE);
    subject
        .wait_for_counter()
        .await
        .context("cannot read the counter in the guest")?;
    let run = run_cycles(&mut subject, run_options(work), observer).await;
    client
        .destroy(&id, true)
        .await
        .context("cannot destroy the machine")?;
    Ok(run)
}

fn run_options(work: &Work) -> RunOptions {
    RunOptions {
        cycles: work.cycles,
        most_cycles: work.most_cycles,
        leftover_vsocks: work.leftover_vsocks(),
    }
}

/// Boots an image of the store `images` in the peer at `binary`, and puts it through its cycles on
/// this host.
///
/// # Errors
/// If it cannot be booted.
pub async fn run_peer(
    kind: PeerKind,
    binary: &Path,
    images: &Path,
    work: &Work,
    observer: &mut dyn Observer,
) -> anyhow::Result<Run> {
    let folder = tempfile::tempdir().context("cannot create a folder for the peer's files")?;
    let image = images.join(work.guest.name());
    let mut subject = PeerMachine::boot(PeerOptions {
        kind,
        binary: binary.to_owned(),
        kernel: image.join("kernel"),
        initramfs: image.join("initramfs"),
        folder: folder.path().to_owned(),
        memory_mib: work.memory_mib,
        vcpus: work.vcpus,
        monitor_first: work.monitor_first,
    })
    .await
    .with_context(|| format!("cannot boot a guest in {}", kind.name()))?;
    Ok(run_cycles(&mut subject, run_options(work), observer).await)
}
