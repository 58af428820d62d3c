//! Scale: resumes of a guest that starts with thousands of leaked pairs, under each port policy.
//!
//! The pairs are leaked on purpose: as many long-lived connections to a leaky init are opened, and a
//! suspend abandons them. They are opened through the VMM's host socket, so this runs on the VMM's
//! host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use cycles::{MachineSubject, PortPolicy, ScaleRun, Subject, on_or_off, scale_table};
use guest_protocol::{Call, Frame, PORT, Request, encode};
use machine_api::{MachineState, VsockOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use kvm_host::rerun::MEMORY_MIB;

use crate::artifacts::GuestImage;
use crate::counter;
use crate::host::KvmHost;
use crate::kvm_place::KvmPlace;
use crate::kvm_process::KvmProcess;
use crate::machine::{MachineSpec, STEP_DEADLINE, boot};
use crate::{host_socket, output};

/// Resumes under each policy.
const RESUMES: u32 = 5;
/// Longest that one resume may take: longer than the supervisor's own limit, so that the supervisor
/// reports its attempts. Under the fixed policy thousands of them must fail before one succeeds.
const RESUME_DEADLINE: Duration = Duration::from_secs(180);
/// How many connections are opened at the same time. guest-init's backlog is 1,024; the guest's
/// kernel answers any further one with a reset.
const OPENED_AT_ONCE: usize = 128;
/// Longest that one attempt to connect may take, and the pause before the next one.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(20);
const ATTEMPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest that opening all connections may take.
const OPEN_DEADLINE: Duration = Duration::from_secs(900);
/// Longest that the whole measurement may take, by this machine's clock. In virtual time 120 s of a
/// guest that is never idle take twenty minutes of one processor.
const DEADLINE: Duration = Duration::from_secs(14_400);
/// The folder with the figures and the name of the process.
const NAME: &str = "scale";
/// Name of the file with the figures, in the output folder.
const FILE: &str = "scale.json";

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// Leaked pairs with which the guest starts
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=16_000))]
    leaked_pairs: u32,
    /// Folder for scale.json and logs
    #[arg(long, value_name = "DIR", default_value = "target/e2e")]
    output: PathBuf,
    /// Measure on this machine, with the images of this store; how the program calls itself
    #[arg(long, value_name = "DIR", hide = true)]
    images: Option<PathBuf>,
}

/// Measures and prints; true if each run shows what it must. With `--images` it is the process that
/// [`measure`] starts, which only writes the figures.
///
/// # Errors
/// If the figures cannot be written.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if let Some(images) = &arguments.images {
        std::fs::create_dir_all(&arguments.output)?;
        measure_here(images, arguments.leaked_pairs, &arguments.output.join(FILE)).await?;
    } else {
        let place = KvmPlace::of_this_machine();
        let runs = measure(place, &arguments.output, arguments.leaked_pairs);
        output::print(&scale_table(&runs, place.clock_of_reports()));
        return Ok(runs.iter().all(ScaleRun::as_expected));
    }
    Ok(true)
}

/// Measures on this machine or in a virtual host. An error becomes part of the figures: callers have
/// measured other things before, which must not be lost.
pub fn measure(place: KvmPlace, folder: &Path, leaked_pairs: u32) -> Vec<ScaleRun> {
    if leaked_pairs == 0 {
        return Vec::new();
    }
    output::say(&format!(
        "scale: a guest that starts with {leaked_pairs} leaked pairs"
    ));
    let result = measure_in_another_process(place, folder, leaked_pairs);
    let file = folder.join(NAME).join(FILE);
    fill_in_missing(read(&file), result, leaked_pairs)
}

/// The measured runs, and for each missing one an entry with the error that prevented it.
fn fill_in_missing(
    measured: anyhow::Result<Vec<ScaleRun>>,
    result: anyhow::Result<()>,
    leaked_pairs: u32,
) -> Vec<ScaleRun> {
    let (mut runs, read_error) = match measured {
        Ok(runs) => (runs, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let Some(error) = result.err().or(read_error) else {
        return runs;
    };
    for setting in &SETTINGS[runs.len().min(SETTINGS.len())..] {
        runs.push(setting.failed_run(leaked_pairs, &error));
    }
    runs
}

fn measure_in_another_process(
    place: KvmPlace,
    folder: &Path,
    leaked_pairs: u32,
) -> anyhow::Result<()> {
    let process = KvmProcess {
        place,
        host_memory_mib: MEMORY_MIB,
        name: NAME,
        images: &[GuestImage::Leaky],
        other_images: &[],
        programs: &[],
        folder,
    };
    let (running, pieces) = process.start(|paths| {
        Ok(vec![
            "scale".to_owned(),
            format!("--images={}", paths.images.display()),
            format!("--leaked-pairs={leaked_pairs}"),
            format!("--output={}", paths.results.display()),
        ])
    })?;
    // Its figures are in a file, so nothing comes; the end of the output is that of the process.
    for piece in pieces {
        output::say(&String::from_utf8_lossy(&piece));
    }
    running.wait(DEADLINE).context("the scale run failed")
}

fn read(path: &Path) -> anyhow::Result<Vec<ScaleRun>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("cannot parse the figures in {}", path.display()))
}

/// What is measured. The run that may leave its machine broken comes last.
const SETTINGS: [Setting; 4] = [
    Setting {
        port_policy: PortPolicy::Random,
        eviction: true,
    },
    Setting {
        port_policy: PortPolicy::Random,
        eviction: false,
    },
    Setting {
        port_policy: PortPolicy::Continue,
        eviction: false,
    },
    Setting {
        port_policy: PortPolicy::Fixed,
        eviction: false,
    },
];

/// The options of one run.
#[derive(Debug, Clone, Copy)]
struct Setting {
    port_policy: PortPolicy,
    eviction: bool,
}

impl Setting {
    fn in_words(self) -> String {
        let (policy, eviction) = (self.port_policy.name(), on_or_off(self.eviction));
        format!("{policy} ports, eviction {eviction}")
    }

    fn empty_run(self, leaked_pairs: u32) -> ScaleRun {
        ScaleRun::new(self.port_policy, self.eviction, leaked_pairs)
    }

    fn failed_run(self, leaked_pairs: u32, error: &anyhow::Error) -> ScaleRun {
        ScaleRun {
            error: Some(format!("{error:#}")),
            ..self.empty_run(leaked_pairs)
        }
    }
}

/// Measures on this machine, and writes the figures after each run.
async fn measure_here(images: &Path, leaked_pairs: u32, file: &Path) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot create a folder for the state")?;
    let host = KvmHost::start_here(folder.path(), images).await?;
    let mut runs = Vec::new();
    for setting in SETTINGS {
        output::say(&format!("scale: {}", setting.in_words()));
        let run = measure_setting(&host, folder.path(), setting, leaked_pairs).await;
        runs.push(run.unwrap_or_else(|error| setting.failed_run(leaked_pairs, &error)));
        std::fs::write(file, serde_json::to_vec(&runs)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    host.stop()
}

async fn measure_setting(
    host: &KvmHost,
    folder: &Path,
    setting: Setting,
    leaked_pairs: u32,
) -> anyhow::Result<ScaleRun> {
    let eviction = if setting.eviction { "-evicting" } else { "" };
    let spec = MachineSpec {
        name: format!("scale-{}{eviction}", setting.port_policy.name()),
        image: GuestImage::Leaky,
        memory_mib: 512,
        vcpus: 1,
        vsock: Some(VsockOptions {
            port_policy: Some(setting.port_policy.into()),
            eviction: Some(setting.eviction),
            // The monitor must get the first port: the status check closes its own connection.
            monitor_first: Some(true),
        }),
        command: counter::command(),
    };
    let machine = boot(host.client(), &spec).await?;
    let id = machine.id;
    // While a guest boots, attempts fail and use up ports. After a resume the pairs are at the front
    // of the range, where the fixed policy starts.
    let client = host.client();
    client.suspend(&id).await?;
    let suspended = client.reach(&id, MachineState::Suspended, STEP_DEADLINE);
    suspended.await.context("cannot suspend the machine")?;
    client.start(&id).await?;
    let started = client.reach(&id, MachineState::Started, STEP_DEADLINE);
    let machine = started.await.context("cannot resume the machine")?;
    let generation = machine.generation;
    let mut subject = MachineSubject::new(client.clone(), machine, None, RESUME_DEADLINE);
    let socket = folder.join("state/machines").join(&id).join("v.sock");
    let connections = open_many(&socket, generation, leaked_pairs).await?;
    let mut run = setting.empty_run(leaked_pairs);
    for resume in 0..RESUMES {
        subject
            .suspend()
            .await
            .context("cannot suspend the machine with its leaked pairs")?;
        output::say(&format!(
            "scale: {}, resume {}",
            setting.in_words(),
            resume + 1
        ));
        match subject.resume().await {
            Ok(outcome) => run.add_resume(outcome.total_ms, outcome.phases, &outcome.readiness),
            Err(error) => {
                let machine = host.client().machine(&id).await?;
                let attempts = u32::try_from(machine.readiness.len()).unwrap_or(u32::MAX);
                run.attempts_max = run.attempts_max.max(attempts);
                run.error = Some(format!("{:#}", anyhow::Error::from(error)));
                break;
            }
        }
    }
    drop(connections);
    host.client()
        .destroy(&id, true)
        .await
        .context("cannot destroy the machine")?;
    Ok(run)
}

/// Interval between two samples on a connection that exists only to be leaked: the longest that init
/// accepts. With a minute, thousands of timers would expire within the run and be measured, since
/// the guest's clock does not advance while it is suspended.
const SAMPLE_INTERVAL_MS: u32 = 3_600_000;

/// Opens `count` long-lived connections to init.
async fn open_many(socket: &Path, generation: u64, count: u32) -> anyhow::Result<Vec<UnixStream>> {
    let sample = Request::CpuUsage {
        interval_ms: SAMPLE_INTERVAL_MS,
    };
    let call = Call::new(generation, None, sample);
    let mut request = Vec::new();
    encode(Frame::Json(&serde_json::to_vec(&call)?), &mut request)?;
    let (socket, request) = (Arc::<Path>::from(socket), Arc::<[u8]>::from(request));
    let deadline = Instant::now() + OPEN_DEADLINE;
    let mut opening = JoinSet::new();
    let mut connections = Vec::new();
    let mut left = 0..count;
    loop {
        let room = OPENED_AT_ONCE - opening.len();
        for _ in left.by_ref().take(room) {
            opening.spawn(open_until(
                deadline,
                Arc::clone(&socket),
                Arc::clone(&request),
            ));
        }
        let Some(opened) = opening.join_next().await else {
            return Ok(connections);
        };
        let number = connections.len() + 1;
        let stream =
            opened?.with_context(|| format!("cannot open connection {number} of {count}"))?;
        connections.push(stream);
        if number % 1000 == 0 {
            output::say(&format!("scale: {number} of {count} connections are open"));
        }
    }
}

/// Opens one, with retries until `deadline`: if the guest's backlog is full, its kernel answers with
/// a reset.
async fn open_until(
    deadline: Instant,
    socket: Arc<Path>,
    request: Arc<[u8]>,
) -> anyhow::Result<UnixStream> {
    loop {
        let opened = timeout(ATTEMPT_DEADLINE, open_one(&socket, &request)).await;
        let seconds = ATTEMPT_DEADLINE.as_secs();
        match opened.unwrap_or_else(|_| Err(anyhow!("no answer within {seconds} s"))) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => sleep(ATTEMPT_PAUSE).await,
        }
    }
}

async fn open_one(socket: &Path, request: &[u8]) -> anyhow::Result<UnixStream> {
    let (mut stream, _) = host_socket::connect(socket, PORT).await?;
    stream.write_all(request).await?;
    // The reply's first byte shows that init serves the stream.
    stream.read_u8().await?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_that_ends_early_keeps_its_figures_and_says_why_others_are_missing() {
        let first = ScaleRun {
            resume_ms: vec![12.0],
            attempts_max: 1,
            ..SETTINGS[0].empty_run(7)
        };
        let runs = fill_in_missing(Ok(vec![first.clone()]), Err(anyhow!("the host hung")), 7);
        assert_eq!(runs.len(), SETTINGS.len());
        assert_eq!(runs[0], first);
        let failed = |run: &ScaleRun| run.error.as_deref() == Some("the host hung");
        assert!(runs[1..].iter().all(failed), "{runs:?}");
    }

    #[test]
    fn a_measurement_without_figures_gives_failed_runs() {
        let runs = fill_in_missing(Err(anyhow!("cannot read")), Ok(()), 7);
        assert_eq!(runs.len(), SETTINGS.len());
        assert!(runs.iter().all(|run| run.error.is_some()));
    }
}
