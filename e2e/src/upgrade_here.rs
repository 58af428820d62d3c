//! The hidden command that hands machines from one release to the other on the host where it is called.
//!
//! Each supervisor is ended as a service manager ends it, and the next one takes over what is there: running
//! guests under VMMs of either release, and images that either has written. A guest shows that it is the
//! same by its boot, by a count that goes on, and by what it wrote to its disk.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use client::{Client, ListFilter};
use machine_api::{
    CreateMachine, ExecRequest, Guest, Init, MachineConfig, MachineState, Mount, StartKind,
    StopRequest,
};
use tokio::process::Command;
use tokio::time::timeout;

use crate::artifacts::GuestImage;
use crate::host::{KvmHost, Programs, new_state};
use crate::kvm_process::Paths;
use crate::machine::STEP_DEADLINE;
use crate::{counter, disk, output};

/// The image with the guest-init of the release before.
pub const IMAGE_BEFORE: &str = "before";

/// The mount point of each machine's disk, and the file there with a line for each look at it.
const DISK: &str = "/disk";
const LOOKS: &str = "/disk/looks";

/// The programs of the release before, and guest images of both.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// The store of guest images
    #[arg(long)]
    images: PathBuf,
    /// mctl-supervisor of the release before
    #[arg(long)]
    supervisor: PathBuf,
    /// mctl-vmm of the release before
    #[arg(long)]
    vmm: PathBuf,
    /// mctl of the release before
    #[arg(long)]
    mctl: PathBuf,
    /// Folder for what the release before has left: from it the files are made that `test` plays
    #[arg(long)]
    results: PathBuf,
}

/// The command line of this command; the programs are supervisor, VMM and `mctl`.
///
/// # Errors
/// If one of them is missing.
pub fn command_line(paths: &Paths) -> anyhow::Result<Vec<String>> {
    let [supervisor, vmm, mctl] = paths.programs.as_slice() else {
        bail!("three programs were expected");
    };
    let named = [
        ("--images", &paths.images),
        ("--supervisor", supervisor),
        ("--vmm", vmm),
        ("--mctl", mctl),
        ("--results", &paths.results),
    ];
    let mut words = vec!["upgrade-here".to_owned()];
    words.extend(named.map(|(name, path)| format!("{name}={}", path.display())));
    Ok(words)
}

/// Runs the command.
///
/// # Errors
/// If a machine was lost, or has lost something.
pub async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot create a folder for the state")?;
    new_state(folder.path(), &arguments.images)?;
    let before = Programs {
        supervisor: arguments.supervisor.clone(),
        vmm: arguments.vmm.clone(),
    };
    let this = Programs::of_this_release()?;
    let mixed = Programs {
        vmm: this.vmm.clone(),
        ..before.clone()
    };
    let mut handover = Handover {
        folder: folder.path().to_owned(),
        machines: Vec::new(),
    };

    let host = handover.begin("the release before", &before).await?;
    let made = handover.make_machines(&host).await;
    end(host, made)?;
    handover.keep_files(&arguments.results)?;

    let host = handover
        .begin("this release takes them over", &this)
        .await?;
    let used = handover.use_with_this(&host, &arguments.mctl).await;
    end(host, used)?;

    let host = handover
        .begin("the release before takes them back", &before)
        .await?;
    let used = handover.use_with_before(&host).await;
    end(host, used)?;

    let title = "the release before, with the VMM of this one";
    let host = handover.begin(title, &mixed).await?;
    let used = handover.use_mixed(&host).await;
    end(host, used)?;

    let host = handover.begin("this release again", &this).await?;
    let used = handover.use_and_end_all(&host).await;
    end(host, used)?;
    output::print(&format!(
        "{} machines went from release to release, and none has lost anything",
        handover.machines.len()
    ));
    Ok(())
}

/// Ends a supervisor as a service manager does; after an error, with the logs.
fn end(host: KvmHost, result: anyhow::Result<()>) -> anyhow::Result<()> {
    result.map_err(|error| error.context(host.ends_of_logs()))?;
    host.stop()
}

/// The machines, and where the state is that one supervisor leaves to the next.
struct Handover {
    folder: PathBuf,
    machines: Vec<Known>,
}

/// What is known of a machine since it was last looked at.
struct Known {
    name: &'static str,
    id: String,
    boot_id: String,
    count: u64,
    looks: usize,
    state: MachineState,
}

impl Handover {
    /// Starts a supervisor, and checks that it has all machines in the states in which they were left.
    async fn begin(&self, title: &str, programs: &Programs) -> anyhow::Result<KvmHost> {
        output::print(title);
        let begun = Instant::now();
        let host = KvmHost::take_over_here(&self.folder, programs).await?;
        let listed = host.client().list(&ListFilter::default()).await?;
        let listed: BTreeSet<_> = listed
            .iter()
            .map(|machine| (machine.id.as_str(), machine.state.to_string()))
            .collect();
        let known: BTreeSet<_> = self
            .machines
            .iter()
            .map(|machine| (machine.id.as_str(), machine.state.to_string()))
            .collect();
        ensure!(
            listed == known,
            "the supervisor has {listed:?} instead of {known:?}"
        );
        tell("all machines", "are there", begun);
        Ok(host)
    }

    /// Made by the release before: one that it never suspends, one that it resumes, one that it leaves
    /// suspended.
    async fn make_machines(&mut self, host: &KvmHost) -> anyhow::Result<()> {
        let client = host.client();
        for name in ["untouched", "resumed", "suspended"] {
            self.create(client, name, IMAGE_BEFORE).await?;
        }
        self.cycle(client, "resumed").await?;
        self.suspend(client, "suspended").await
    }

    /// VMMs of the release before go on; images of the release before are resumed by the VMM of this one.
    async fn use_with_this(&mut self, host: &KvmHost, mctl: &Path) -> anyhow::Result<()> {
        let client = host.client();
        self.look(client, "untouched").await?;
        self.cycle(client, "resumed").await?;
        self.cycle(client, "resumed").await?;
        self.resume(client, "suspended").await?;
        self.suspend(client, "suspended").await?;
        let default = GuestImage::Default.name();
        for name in ["new", "new-suspended"] {
            self.create(client, name, default).await?;
        }
        self.suspend(client, "new-suspended").await?;
        self.drive_with(mctl, client, "new").await
    }

    /// VMMs and guests of this release are driven by the supervisor before, and images of this release
    /// resumed by the VMM before.
    async fn use_with_before(&mut self, host: &KvmHost) -> anyhow::Result<()> {
        let client = host.client();
        for name in ["untouched", "resumed", "new"] {
            self.look(client, name).await?;
        }
        for name in ["suspended", "new-suspended"] {
            self.resume(client, name).await?;
        }
        for name in ["untouched", "resumed"] {
            self.cycle(client, name).await?;
        }
        self.suspend(client, "new").await
    }

    /// An update has replaced the VMM program under the supervisor before.
    async fn use_mixed(&mut self, host: &KvmHost) -> anyhow::Result<()> {
        let client = host.client();
        self.resume(client, "new").await?;
        self.cycle(client, "suspended").await?;
        self.create(client, "mixed", IMAGE_BEFORE).await?;
        self.cycle(client, "mixed").await?;
        self.suspend(client, "resumed").await
    }

    async fn use_and_end_all(&mut self, host: &KvmHost) -> anyhow::Result<()> {
        let client = host.client();
        self.resume(client, "resumed").await?;
        let names: Vec<_> = self.machines.iter().map(|machine| machine.name).collect();
        for name in names {
            self.look(client, name).await?;
            self.cycle(client, name).await?;
            let id = self.known(name)?.id.clone();
            client.stop(&id, &StopRequest::default()).await?;
            client
                .reach(&id, MachineState::Stopped, STEP_DEADLINE)
                .await?;
            client.destroy(&id, false).await?;
        }
        let left = client.unlisted().await?;
        ensure!(left.is_empty(), "folders are left over: {left:?}");
        Ok(())
    }

    /// Copies database, image and machine file that the release before has written; not the memory.
    fn keep_files(&self, results: &Path) -> anyhow::Result<()> {
        let state = self.folder.join("state");
        let mut kept = vec![state.join("mctl.db")];
        let machine = self.machines.iter().find(|known| known.name == "suspended");
        let machine = machine.context("no machine is suspended")?;
        let folder = state.join("machines").join(&machine.id);
        for image in std::fs::read_dir(&folder).context("cannot list the machine's folder")? {
            let image = image?.path();
            kept.extend(["manifest.json", "state.bin", "memory.sums"].map(|name| image.join(name)));
        }
        std::fs::create_dir_all(results)
            .with_context(|| format!("cannot create {}", results.display()))?;
        for path in kept.iter().filter(|path| path.is_file()) {
            let name = path.file_name().context("a file without a name")?;
            std::fs::copy(path, results.join(name))
                .with_context(|| format!("cannot copy {}", path.display()))?;
        }
        Ok(())
    }

    fn known(&mut self, name: &str) -> anyhow::Result<&mut Known> {
        let found = self
            .machines
            .iter_mut()
            .find(|machine| machine.name == name);
        found.with_context(|| format!("there is no machine {name}"))
    }

    async fn create(
        &mut self,
        client: &Client,
        name: &'static str,
        image: &str,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        let file = self.folder.join(format!("{name}.raw"));
        disk::make(&file)?;
        let config = MachineConfig {
            image: image.to_owned(),
            guest: Some(Guest {
                cpus: 1,
                memory_mb: 128,
                ..Guest::default()
            }),
            init: Some(Init {
                exec: counter::command(),
                ..Init::default()
            }),
            mounts: vec![Mount {
                volume: file.display().to_string(),
                path: DISK.to_owned(),
                read_only: false,
            }],
            ..MachineConfig::default()
        };
        let request = CreateMachine {
            name: Some(name.to_owned()),
            config,
            ..CreateMachine::default()
        };
        let machine = client.create(&request).await?;
        let reached = client.reach(&machine.id, MachineState::Started, STEP_DEADLINE);
        reached.await.context("cannot boot a machine")?;
        let boot_id = shell(
            client,
            &machine.id,
            "cat /proc/sys/kernel/random/boot_id".to_owned(),
        );
        self.machines.push(Known {
            name,
            boot_id: boot_id.await?,
            id: machine.id,
            count: 0,
            looks: 0,
            state: MachineState::Started,
        });
        tell(name, "was made", begun);
        self.look(client, name).await
    }

    /// Checks that the guest is the one that it was, goes on, and has what it wrote.
    async fn look(&mut self, client: &Client, name: &str) -> anyhow::Result<()> {
        let known = self.known(name)?;
        let script = format!(
            "cat /proc/sys/kernel/random/boot_id && wc -l <{LOOKS} 2>/dev/null || echo 0; echo looked >>{LOOKS} && sync"
        );
        let answer = shell(client, &known.id, script).await?;
        let (boot_id, looks) = answer.split_once('\n').context("two lines")?;
        ensure!(
            boot_id == known.boot_id,
            "{name}: its guest has booted again: {boot_id} instead of {}",
            known.boot_id
        );
        ensure!(
            looks.trim() == known.looks.to_string(),
            "{name}: its disk has {looks} lines instead of {}",
            known.looks
        );
        known.looks += 1;
        let deadline = Instant::now() + STEP_DEADLINE;
        let read = format!("cat {}", counter::FILE);
        loop {
            let text = shell(client, &known.id, read.clone()).await?;
            let count = counter::parse(text.as_bytes()).unwrap_or(0);
            if count > known.count {
                known.count = count;
                return Ok(());
            }
            ensure!(
                count == known.count || Instant::now() < deadline,
                "{name}: its counter does not go on after {}",
                known.count
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn suspend(&mut self, client: &Client, name: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        let known = self.known(name)?;
        client.suspend(&known.id).await?;
        let reached = client.reach(&known.id, MachineState::Suspended, STEP_DEADLINE);
        reached
            .await
            .with_context(|| format!("cannot suspend {name}"))?;
        known.state = MachineState::Suspended;
        tell(name, "was suspended", begun);
        Ok(())
    }

    async fn resume(&mut self, client: &Client, name: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        let known = self.known(name)?;
        client.start(&known.id).await?;
        let reached = client.reach(&known.id, MachineState::Started, STEP_DEADLINE);
        let machine = reached
            .await
            .with_context(|| format!("cannot resume {name}"))?;
        known.state = MachineState::Started;
        let start = machine.last_start;
        ensure!(
            start == Some(StartKind::Resumed),
            "{name} was not resumed: {start:?}"
        );
        self.look(client, name).await?;
        tell(name, "was resumed", begun);
        Ok(())
    }

    async fn cycle(&mut self, client: &Client, name: &str) -> anyhow::Result<()> {
        self.suspend(client, name).await?;
        self.resume(client, name).await
    }

    /// Uses a machine with the `mctl` of the release before.
    async fn drive_with(&mut self, mctl: &Path, client: &Client, name: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        let socket = self.folder.join("state/api.sock");
        for words in [
            &["list"][..],
            &["suspend", name],
            &["resume", name],
            &["exec", name, "--", "true"],
        ] {
            let mut command = Command::new(mctl);
            command.args(words);
            command.env("MCTL_HOST", format!("unix://{}", socket.display()));
            run_command(command).await?;
        }
        self.look(client, name).await?;
        tell(name, "was suspended and resumed by the mctl before", begun);
        Ok(())
    }
}

/// Runs a command in the guest; what it printed, without the last line's end.
async fn shell(client: &Client, id: &str, script: String) -> anyhow::Result<String> {
    let request = ExecRequest {
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), script],
        ..ExecRequest::default()
    };
    let answer = client.exec(id, &request).await?;
    ensure!(
        answer.exit_code == 0,
        "the guest's command failed: {answer:?}"
    );
    Ok(answer.stdout.trim_end().to_owned())
}

async fn run_command(mut command: Command) -> anyhow::Result<()> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let shown = format!("{:?}", command.as_std());
    let output = timeout(STEP_DEADLINE, command.output()).await;
    let output = output
        .with_context(|| format!("{shown} did not end within {} s", STEP_DEADLINE.as_secs()))?
        .with_context(|| format!("cannot run {shown}"))?;
    ensure!(
        output.status.success(),
        "{shown}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn tell(name: &str, what: &str, begun: Instant) {
    let ms = begun.elapsed().as_secs_f64() * 1_000.0;
    output::print(&format!("  {name:<14} {what} ({ms:.0} ms)"));
}
