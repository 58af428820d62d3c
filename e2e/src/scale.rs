//! Scale: a guest that starts with thousands of leaked pairs, resumed under each port policy.
//!
//! The pairs are made on purpose: as many long-lived connections to a leaky init, abandoned by a
//! suspend. They are opened through the VMM's own host socket, so this runs where the VMM runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use cycles::{MachineSubject, PortPolicy, ScaleRun, Subject, scale_table};
use guest_protocol::{Call, Frame, PORT, Request, VERSION, encode};
use kvm_host::rerun::{EXPORT, Rerun};
use machine_api::{MachineState, PortPolicy as ApiPolicy, VsockOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::artifacts::GuestImage;
use crate::host::{self, KvmHost};
use crate::main_job::{STEP_DEADLINE, Wanted, boot};
use crate::output;

/// Resumes under each policy.
const RESUMES: u32 = 5;
/// Longest that one resume may take: longer than the supervisor tries, so that it tells how often
/// it did. Under the fixed policy thousands of attempts must fail before one succeeds.
const RESUME_DEADLINE: Duration = Duration::from_secs(180);
/// Connections that are being made at a time. guest-init lets 1,024 wait to be accepted, and the
/// guest's kernel answers any further one with a reset.
const OPENED_AT_ONCE: usize = 128;
/// Longest that one attempt to connect may take, and the pause before the next one.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(20);
const ATTEMPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest that all connections together may take to be made.
const OPEN_DEADLINE: Duration = Duration::from_secs(900);
/// Longest that the whole may take.
const DEADLINE: Duration = Duration::from_secs(3600);
/// Where images lie inside a virtual host.
const INSIDE_IMAGES: &str = "/images";
/// The figures, in the output folder.
const FILE: &str = "scale.json";

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// Leaked pairs with which the guest begins
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=16_000))]
    leaked_pairs: u32,
    /// Folder for scale.json and logs
    #[arg(long, value_name = "DIR", default_value = "target/e2e")]
    output: PathBuf,
    /// Images to use on this very machine, which is how a virtual host is called
    #[arg(long, value_name = "DIR", hide = true)]
    images: Option<PathBuf>,
}

/// Measures and prints, or is what [`measure`] calls; true if the pairs cost what they must.
///
/// # Errors
/// Where the figures could not be written.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if let Some(images) = &arguments.images {
        std::fs::create_dir_all(&arguments.output)?;
        measure_here(images, arguments.leaked_pairs, &arguments.output.join(FILE)).await?;
    } else {
        let runs = measure(&arguments.output, arguments.leaked_pairs);
        output::print(&scale_table(&runs));
        return Ok(runs.iter().all(ScaleRun::as_expected));
    }
    Ok(true)
}

/// Measures on this machine or in a virtual host. What goes wrong is part of the figures, since
/// those who call have measured other things before that must not be lost.
pub fn measure(folder: &Path, leaked_pairs: u32) -> Vec<ScaleRun> {
    if leaked_pairs == 0 {
        return Vec::new();
    }
    output::say(&format!(
        "scale: a guest that begins with {leaked_pairs} leaked pairs"
    ));
    let ended = measure_in_another_process(folder, leaked_pairs);
    let file = folder.join("scale").join(FILE);
    complete(read(&file), ended, leaked_pairs)
}

/// What was measured, and an entry with `ended`'s error for each run that was not.
fn complete(
    measured: anyhow::Result<Vec<ScaleRun>>,
    ended: anyhow::Result<()>,
    leaked_pairs: u32,
) -> Vec<ScaleRun> {
    let (mut runs, unread) = match measured {
        Ok(runs) => (runs, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let Some(error) = ended.err().or(unread) else {
        return runs;
    };
    for setting in &SETTINGS[runs.len().min(SETTINGS.len())..] {
        runs.push(setting.failed(leaked_pairs, &error));
    }
    runs
}

fn measure_in_another_process(folder: &Path, leaked_pairs: u32) -> anyhow::Result<()> {
    let output = folder.join("scale");
    // Figures of an earlier run would be taken for this one's.
    if output.join(FILE).exists() {
        std::fs::remove_file(output.join(FILE)).context("cannot remove earlier figures")?;
    }
    let command = |images: &str, output: &str| {
        vec![
            "scale".to_owned(),
            format!("--images={images}"),
            format!("--leaked-pairs={leaked_pairs}"),
            format!("--output={output}"),
        ]
    };
    let code = if host::runs_linux_here() {
        let store = folder.join("images");
        crate::artifacts::build_images(&store, &[GuestImage::Leaky])?;
        let this = std::env::current_exe().context("cannot find this program's own path")?;
        let arguments = command(&store.display().to_string(), &output.display().to_string());
        std::process::Command::new(this)
            .args(arguments)
            .status()?
            .code()
            .unwrap_or(-1)
    } else {
        let mut files = host::image_files(folder, &[GuestImage::Leaky], INSIDE_IMAGES)?;
        files.extend(host::binaries_for_inside(&["mctl-supervisor", "mctl-vmm"])?);
        Rerun {
            parts: host::parts()?,
            arguments: command(INSIDE_IMAGES, EXPORT),
            environment: Vec::new(),
            files,
            export: Some((EXPORT, &output)),
            log_folder: folder.join("scale-host"),
            deadline: DEADLINE,
        }
        .run()?
    };
    ensure!(
        code == 0,
        "the scale run failed with exit code {code}; see above"
    );
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<ScaleRun>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).context("the scale run's figures make no sense")
}

/// What is measured, the run that may leave its machine broken last.
const SETTINGS: [Setting; 4] = [
    Setting {
        port_policy: PortPolicy::Random,
        api_policy: ApiPolicy::Random,
        eviction: true,
    },
    Setting {
        port_policy: PortPolicy::Random,
        api_policy: ApiPolicy::Random,
        eviction: false,
    },
    Setting {
        port_policy: PortPolicy::Continue,
        api_policy: ApiPolicy::Continue,
        eviction: false,
    },
    Setting {
        port_policy: PortPolicy::Fixed,
        api_policy: ApiPolicy::Fixed,
        eviction: false,
    },
];

/// What one run is made with.
#[derive(Debug, Clone, Copy)]
struct Setting {
    port_policy: PortPolicy,
    api_policy: ApiPolicy,
    eviction: bool,
}

impl Setting {
    fn in_words(self) -> String {
        let eviction = if self.eviction { "on" } else { "off" };
        format!("{} ports, eviction {eviction}", self.port_policy.name())
    }

    fn unmeasured(self, leaked_pairs: u32) -> ScaleRun {
        ScaleRun {
            port_policy: self.port_policy,
            eviction: self.eviction,
            leaked_pairs,
            resume_ms: Vec::new(),
            resumes: Vec::new(),
            attempts_max: 0,
            error: None,
        }
    }

    fn failed(self, leaked_pairs: u32, error: &anyhow::Error) -> ScaleRun {
        ScaleRun {
            error: Some(format!("{error:#}")),
            ..self.unmeasured(leaked_pairs)
        }
    }
}

/// Measures on this very machine, and writes the figures after each run.
async fn measure_here(images: &Path, leaked_pairs: u32, file: &Path) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot make a folder for the state")?;
    let host = KvmHost::start_here(folder.path(), images).await?;
    let mut runs = Vec::new();
    for setting in SETTINGS {
        output::say(&format!("scale: {}", setting.in_words()));
        let run = one_setting(&host, folder.path(), setting, leaked_pairs).await;
        runs.push(run.unwrap_or_else(|error| setting.failed(leaked_pairs, &error)));
        std::fs::write(file, serde_json::to_vec(&runs)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    host.stop()
}

async fn one_setting(
    host: &KvmHost,
    folder: &Path,
    setting: Setting,
    leaked_pairs: u32,
) -> anyhow::Result<ScaleRun> {
    let eviction = if setting.eviction { "-evicting" } else { "" };
    let wanted = Wanted {
        name: format!("scale-{}{eviction}", setting.port_policy.name()),
        image: GuestImage::Leaky,
        memory_mib: 512,
        vcpus: 1,
        vsock: Some(VsockOptions {
            port_policy: Some(setting.api_policy),
            eviction: Some(setting.eviction),
            // The status check must not get the first port, which it has closed itself.
            monitor_first: Some(true),
        }),
    };
    let machine = boot(host.client(), &wanted).await?;
    let id = machine.id;
    // While a guest boots, attempts fail and use ports up. After a resume the pairs stand at the
    // front of the range, where the fixed policy begins.
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
    let mut run = setting.unmeasured(leaked_pairs);
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
            Ok(outcome) => run.resumed(outcome),
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
        .context("cannot remove the machine")?;
    Ok(run)
}

/// Time between two samples on a connection that is only there to be leaked: the longest that init
/// takes. The guest's clock goes on in no suspend, so at a minute all of them would send within
/// the run, and what was measured would be thousands of timers.
const SILENT_MS: u32 = 3_600_000;

/// Opens that many long-lived connections to init and keeps them.
async fn open_many(socket: &Path, generation: u64, count: u32) -> anyhow::Result<Vec<UnixStream>> {
    let call = Call {
        version: VERSION,
        generation,
        wake: None,
        request: Request::CpuUsage {
            interval_ms: SILENT_MS,
        },
    };
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
            opening.spawn(open_by(deadline, Arc::clone(&socket), Arc::clone(&request)));
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

/// Opens one, again and again until `deadline`: a full queue of the guest's answers with a reset.
async fn open_by(
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
    let mut stream = UnixStream::connect(socket).await?;
    stream
        .write_all(format!("CONNECT {PORT}\n").as_bytes())
        .await?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await?);
    }
    if !line.starts_with(b"OK ") {
        bail!("the VMM answered {:?}", String::from_utf8_lossy(&line));
    }
    stream.write_all(request).await?;
    // The reply's first byte shows that init serves the stream.
    stream.read_u8().await?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_run_that_breaks_off_keeps_its_figures_and_says_why_the_others_are_missing() {
        let first = ScaleRun {
            resume_ms: vec![12.0],
            attempts_max: 1,
            ..SETTINGS[0].unmeasured(7)
        };
        let runs = complete(Ok(vec![first.clone()]), Err(anyhow!("the host hung")), 7);
        assert_eq!(runs.len(), SETTINGS.len());
        assert_eq!(runs[0], first);
        let said = |run: &ScaleRun| run.error.as_deref() == Some("the host hung");
        assert!(runs[1..].iter().all(said), "{runs:?}");
    }

    #[test]
    fn a_scale_run_without_figures_is_data_too() {
        let runs = complete(Err(anyhow!("cannot read")), Ok(()), 7);
        assert_eq!(runs.len(), SETTINGS.len());
        assert!(runs.iter().all(|run| run.error.is_some()));
    }
}
