//! Scale: a guest that starts with thousands of leaked pairs, resumed under each port policy.
//!
//! The pairs are made on purpose: as many long-lived connections to a leaky init, abandoned by a
//! suspend. They are opened through the VMM's own host socket, so this runs where the VMM runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use cycles::{MachineSubject, PortPolicy, ScaleRun, Subject};
use guest_protocol::{Call, Frame, PORT, Request, VERSION, encode};
use machine_api::{PortPolicy as ApiPolicy, VsockOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::artifacts::GuestImage;
use crate::host::{self, KvmHost};
use crate::inside::{self, EXPORT, Inside};
use crate::main_job::{Wanted, boot};
use crate::output;

/// Resumes under each policy.
const RESUMES: u32 = 5;
/// Longest that one resume may take. Under the fixed policy thousands of attempts must fail
/// before one succeeds, and nobody waits for that.
const RESUME_DEADLINE: Duration = Duration::from_secs(60);
/// Longest that one connection may take to be made.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);
/// Longest that the whole may take.
const DEADLINE: Duration = Duration::from_secs(1800);
/// Where images lie inside a virtual host.
const INSIDE_IMAGES: &str = "/images";

/// Arguments of the hidden command.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    #[arg(long)]
    images: PathBuf,
    #[arg(long)]
    leaked_pairs: u32,
    #[arg(long)]
    output: PathBuf,
}

/// Measures on this machine or in a virtual host.
///
/// # Errors
/// Where the host, the guest or its connections could not be had.
pub fn measure(folder: &Path, leaked_pairs: u32) -> anyhow::Result<Vec<ScaleRun>> {
    if leaked_pairs == 0 {
        return Ok(Vec::new());
    }
    output::say(&format!(
        "scale: a guest that begins with {leaked_pairs} leaked pairs"
    ));
    let result = folder.join("scale").join("scale.json");
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
        let arguments = command(&store.display().to_string(), &result.display().to_string());
        std::process::Command::new(this)
            .args(arguments)
            .status()?
            .code()
            .unwrap_or(-1)
    } else {
        let mut files = host::image_files(folder, &[GuestImage::Leaky], INSIDE_IMAGES)?;
        files.extend(host::binaries_for_inside(&["mctl-supervisor", "mctl-vmm"])?);
        inside::run(Inside {
            arguments: command(INSIDE_IMAGES, &format!("{EXPORT}/scale.json")),
            environment: Vec::new(),
            files,
            export: Some((EXPORT, &folder.join("scale"))),
            logs: folder.join("scale-host"),
            deadline: DEADLINE,
        })?
    };
    ensure!(
        code == 0,
        "the scale run failed with exit code {code}; see above"
    );
    let text =
        std::fs::read(&result).with_context(|| format!("cannot read {}", result.display()))?;
    serde_json::from_slice(&text).context("the scale run's figures make no sense")
}

/// The hidden command: measures on this very machine and writes the runs as JSON.
///
/// # Errors
/// Where the host, the guest or its connections could not be had.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let folder = tempfile::tempdir().context("cannot make a folder for the state")?;
    let host = KvmHost::start_here(folder.path(), &arguments.images).await?;
    let policies = [
        (PortPolicy::Random, ApiPolicy::Random),
        (PortPolicy::Continue, ApiPolicy::Continue),
        (PortPolicy::Fixed, ApiPolicy::Fixed),
    ];
    let mut runs = Vec::new();
    for (port_policy, policy) in policies {
        output::say(&format!("scale: {} ports", port_policy.name()));
        runs.push(one_policy(&host, folder.path(), port_policy, policy, arguments).await?);
    }
    if let Some(parent) = arguments.output.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&arguments.output, serde_json::to_vec(&runs)?)
        .with_context(|| format!("cannot write {}", arguments.output.display()))?;
    host.stop()?;
    Ok(true)
}

async fn one_policy(
    host: &KvmHost,
    folder: &Path,
    port_policy: PortPolicy,
    policy: ApiPolicy,
    arguments: &Arguments,
) -> anyhow::Result<ScaleRun> {
    let wanted = Wanted {
        name: format!("scale-{}", port_policy.name()),
        image: GuestImage::Leaky,
        memory_mib: 512,
        vcpus: 1,
        vsock: Some(VsockOptions {
            port_policy: Some(policy),
            eviction: Some(false),
            monitor_first: Some(false),
        }),
    };
    let machine = boot(host.client(), &wanted).await?;
    let id = machine.id.clone();
    let socket = folder.join("state/machines").join(&id).join("v.sock");
    let generation = machine.generation;
    let connections = open_many(&socket, generation, arguments.leaked_pairs).await?;
    let mut subject = MachineSubject::new(host.client().clone(), machine, None, RESUME_DEADLINE);
    let mut run = ScaleRun {
        port_policy,
        eviction: false,
        leaked_pairs: arguments.leaked_pairs,
        resume_ms: Vec::new(),
        attempts_max: 0,
        error: None,
    };
    for resume in 0..RESUMES {
        subject
            .suspend()
            .await
            .context("cannot suspend the machine with its leaked pairs")?;
        output::say(&format!(
            "scale: {} ports, resume {}",
            port_policy.name(),
            resume + 1
        ));
        match subject.resume().await {
            Ok(outcome) => {
                run.resume_ms.push(outcome.total_ms);
                let attempts = u32::try_from(outcome.readiness.len()).unwrap_or(u32::MAX);
                run.attempts_max = run.attempts_max.max(attempts);
            }
            Err(error) => {
                let machine = host.client().machine(&id).await?;
                run.attempts_max = u32::try_from(machine.readiness.len()).unwrap_or(u32::MAX);
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

/// Opens that many long-lived connections to init and keeps them.
async fn open_many(socket: &Path, generation: u64, count: u32) -> anyhow::Result<Vec<UnixStream>> {
    let call = Call {
        version: VERSION,
        generation,
        wake: None,
        request: Request::CpuUsage {
            interval_ms: 60_000,
        },
    };
    let mut request = Vec::new();
    encode(Frame::Json(&serde_json::to_vec(&call)?), &mut request)?;
    let mut connections = Vec::new();
    for number in 1..=count {
        let opened = timeout(CONNECT_DEADLINE, open_one(socket, &request)).await;
        let stream = opened
            .with_context(|| format!("connection {number} of {count} hung"))?
            .with_context(|| format!("connection {number} of {count} failed"))?;
        connections.push(stream);
        if number % 1000 == 0 {
            output::say(&format!("scale: {number} of {count} connections are open"));
        }
    }
    Ok(connections)
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
