//! The hidden command that measures boots, suspends and resumes on the host where it is called, and
//! writes their figures into a file for the `mctl-e2e` that called it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use client::Client;
use cycles::recorded_timing;
use machine_api::{ExecRequest, Machine, MachineState, Operation, Timing};

use crate::artifacts::GuestImage;
use crate::figures::{Figures, FilledFigures, OperationFigures, VmmCpu};
use crate::host::KvmHost;
use crate::machine::{MachineSpec, STEP_DEADLINE, boot};
use crate::output;

/// How much of the guest's memory is filled before the reference suspend.
const FILL_PERCENT: u32 = 80;
/// Memory of the idle guest, in MiB.
const IDLE_MEMORY_MIB: u32 = 256;
/// Cycles before those that count: the first suspend writes what the boot has touched.
const WARM_UP_CYCLES: u32 = 3;
/// Name of the file with the figures.
const FILE: &str = "figures.json";

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// The store of guest images
    #[arg(long)]
    images: PathBuf,
    /// Folder for the figures
    #[arg(long)]
    output: PathBuf,
    #[command(flatten)]
    amount: Amount,
}

/// How much to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct Amount {
    /// Boots of an idle guest
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub boots: u32,
    /// Suspends and resumes of an idle guest
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub cycles: u32,
    /// Memory of the guest whose memory is filled, in MiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(256..=4096))]
    pub memory_mib: u32,
    /// Suspends of that guest after the first one; 0 leaves it out
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub repeats: u32,
}

/// The command line of this command.
pub fn command_line(images: &Path, output: &Path, amount: Amount) -> Vec<String> {
    vec![
        "bench-here".to_owned(),
        format!("--images={}", images.display()),
        format!("--output={}", output.display()),
        format!("--boots={}", amount.boots),
        format!("--cycles={}", amount.cycles),
        format!("--memory-mib={}", amount.memory_mib),
        format!("--repeats={}", amount.repeats),
    ]
}

/// Reads the figures that the command has written into `folder`.
///
/// # Errors
/// If there are none.
pub fn read(folder: &Path) -> anyhow::Result<Figures> {
    let path = folder.join(FILE);
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("cannot parse {}", path.display()))
}

/// Runs the command.
///
/// # Errors
/// If a machine fails a step, or the figures cannot be written.
pub async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot create a folder for the state")?;
    let host = KvmHost::start_here(folder.path(), &arguments.images).await?;
    let amount = arguments.amount;
    let operations = measure_idle(host.client(), amount).await?;
    let filled = if amount.repeats == 0 {
        None
    } else {
        Some(measure_filled(host.client(), amount).await?)
    };
    let guest_kernel = guest_kernel(host.client()).await?;
    let figures = Figures {
        host: host.describe().await?,
        work: format!(
            "a guest of {IDLE_MEMORY_MIB} MiB and 1 vCPU that sleeps: {} boots; {} cycles after \
             {WARM_UP_CYCLES} that do not count",
            amount.boots, amount.cycles
        ),
        operations,
        guest_kernel,
        filled,
    };
    host.stop()?;
    std::fs::create_dir_all(&arguments.output)?;
    let path = arguments.output.join(FILE);
    std::fs::write(&path, serde_json::to_vec(&figures)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

async fn guest_kernel(client: &Client) -> anyhow::Result<String> {
    let info = client.host().await?;
    let kernel = info.image_kernels.get(GuestImage::Default.name());
    Ok(kernel.cloned().unwrap_or_default())
}

/// Boots machines one after the other, and puts the last one through cycles.
async fn measure_idle(client: &Client, amount: Amount) -> anyhow::Result<Vec<OperationFigures>> {
    let spec = spec("idle", IDLE_MEMORY_MIB);
    let (mut boots, mut boots_cpu) = (Vec::new(), Vec::new());
    let mut machine = boot(client, &spec).await?;
    loop {
        boots_cpu.extend(vmm_cpu(&machine));
        let generation = machine.generation;
        let timing = recorded_timing(
            client,
            &machine.id,
            Operation::Start,
            generation,
            STEP_DEADLINE,
        );
        boots.push(timing.await?);
        output::say(&format!("boot {} of {}", boots.len(), amount.boots));
        if boots.len() >= usize::try_from(amount.boots)? {
            break;
        }
        client.destroy(&machine.id, true).await?;
        machine = boot(client, &spec).await?;
    }
    let (mut suspends, mut resumes, mut resumes_cpu) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=WARM_UP_CYCLES + amount.cycles {
        let (_, suspend) = step(client, &machine.id, MachineState::Suspended).await?;
        let (resumed, resume) = step(client, &machine.id, MachineState::Started).await?;
        if number > WARM_UP_CYCLES {
            suspends.push(suspend);
            resumes.push(resume);
            resumes_cpu.extend(resumed);
        }
        if number % 10 == 0 {
            output::say(&format!(
                "cycle {number} of {}",
                WARM_UP_CYCLES + amount.cycles
            ));
        }
    }
    client.destroy(&machine.id, true).await?;
    Ok(vec![
        OperationFigures::of_timings("boot", &boots).with_cpu(&boots_cpu),
        OperationFigures::of_timings("suspend", &suspends),
        OperationFigures::of_timings("resume", &resumes).with_cpu(&resumes_cpu),
    ])
}

/// Suspends a machine with filled memory once, and then, idle, again and again.
async fn measure_filled(client: &Client, amount: Amount) -> anyhow::Result<FilledFigures> {
    let machine = boot(client, &spec("filled", amount.memory_mib)).await?;
    fill(client, &machine.id, amount.memory_mib * FILL_PERCENT / 100).await?;
    let (_, first) = step(client, &machine.id, MachineState::Suspended).await?;
    let mut resumes = vec![step(client, &machine.id, MachineState::Started).await?.1];
    let mut repeated = Vec::new();
    for number in 1..=amount.repeats {
        output::say(&format!("suspend {number} of {}", amount.repeats));
        repeated.push(step(client, &machine.id, MachineState::Suspended).await?.1);
        resumes.push(step(client, &machine.id, MachineState::Started).await?.1);
    }
    client.destroy(&machine.id, true).await?;
    Ok(FilledFigures {
        memory_mib: amount.memory_mib,
        first,
        repeated,
        resumes,
    })
}

fn spec(name: &str, memory_mib: u32) -> MachineSpec {
    MachineSpec {
        name: name.to_owned(),
        image: GuestImage::Default,
        memory_mib,
        vcpus: 1,
        vsock: None,
        command: ["/bin/sleep", "1000000"].map(str::to_owned).to_vec(),
    }
}

/// Fills guest memory with random bytes, which every VMM has to write.
async fn fill(client: &Client, id: &str, mib: u32) -> anyhow::Result<()> {
    output::say(&format!("filling {mib} MiB of the guest's memory"));
    let script = format!(
        "mkdir -p /fill && mount -t tmpfs -o size={mib}m fill /fill && \
         dd if=/dev/urandom of=/fill/bytes bs=1M count={mib} 2>&1; sync; free -m"
    );
    let request = ExecRequest {
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), script],
        timeout: Some(900),
        ..ExecRequest::default()
    };
    let answer = client
        .exec(id, &request)
        .await
        .context("cannot fill the guest's memory")?;
    ensure!(
        answer.exit_code == 0,
        "filling the guest's memory failed: {}",
        answer.stderr
    );
    Ok(())
}

/// Suspends or resumes until the machine is in the state `wanted`. Returns what the VMM has used when
/// that was so, if there is one, and the timing.
async fn step(
    client: &Client,
    id: &str,
    wanted: MachineState,
) -> anyhow::Result<(Option<VmmCpu>, Timing)> {
    let operation = if wanted == MachineState::Suspended {
        client.suspend(id).await?;
        Operation::Suspend
    } else {
        client.start(id).await?;
        Operation::Resume
    };
    let machine = client.reach(id, wanted, STEP_DEADLINE).await?;
    let cpu = vmm_cpu(&machine);
    let generation = machine.generation;
    let timing = recorded_timing(client, id, operation, generation, STEP_DEADLINE).await?;
    Ok((cpu, timing))
}

/// What the VMM of a started machine has used. The thread that verifies memory in the background works
/// after the machine is started, and does not count.
fn vmm_cpu(machine: &Machine) -> Option<VmmCpu> {
    let mut cpu = VmmCpu::default();
    for thread in process_usage::thread_times(machine.vmm_pid?) {
        let ms = Duration::from_nanos(thread.cpu_ns).as_secs_f64() * 1e3;
        match thread.name.as_str() {
            "verifier" => {}
            name if name.starts_with("vcpu") => cpu.vcpus_ms += ms,
            _ => cpu.others_ms += ms,
        }
    }
    Some(cpu)
}
